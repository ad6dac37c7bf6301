#!/usr/bin/env bash
# Make .venv: the complete pinned set of requirements/, OpenRLHF 0.9.3, this repository, and the patch stack.
#
# Idempotent: a second call checks and returns. Resumable: a call that was interrupted is simply made again. It uses no package
# of the system and nothing of an environment that happens to be active.
#
#   bash setup_env.sh            # gpu where nvidia-smi finds one, else cpu
#   bash setup_env.sh cpu        # 8.5 GB installed: the registry's torch brings CUDA libraries along, unused
#   PYTHON=/opt/python3.12/bin/python3 bash setup_env.sh gpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX

MIN_FREE_GB=${MIN_FREE_GB:-15}
UV_VERSION=0.10.4
STAMP=.venv/.gptoss-rl-setup

fail() { echo "setup_env: $*" >&2; exit 1; }
stage() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }

mode=${1:-}
if [[ -z $mode ]]; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then mode=gpu; else mode=cpu; fi
fi
[[ $mode == cpu || $mode == gpu ]] || fail "the mode is cpu or gpu, not '$mode'"

# What the environment depends on; when it is unchanged there is nothing to install.
wanted="$mode $(cat "requirements/$mode.txt" requirements/dev.txt pyproject.toml | sha256sum | cut -c1-64)"
if [[ -f $STAMP && $(<"$STAMP") == "$wanted" ]]; then
  bash apply_patches.sh >/dev/null
  bash apply_patches.sh --check
  exit 0
fi
if [[ -f .venv/.gptoss-rl-mode && $(<.venv/.gptoss-rl-mode) != "$mode" ]]; then
  fail ".venv was made for $(<.venv/.gptoss-rl-mode); remove it (rm -rf .venv) to set up $mode"
fi

usable() {  # a Python that runs, is 3.10 to 3.12, and can make environments
  "$1" -I -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}
python=""
for candidate in ${PYTHON:-python3.12 python3.11 python3.10 python3}; do
  if command -v "$candidate" >/dev/null && usable "$candidate"; then python=$candidate; break; fi
done
[[ -n $python ]] ||
  fail "no usable Python 3.10, 3.11 or 3.12 with venv${PYTHON:+ at PYTHON=$PYTHON}; install one (Debian: python3-venv) or set PYTHON"
for compiler in gcc g++; do
  command -v "$compiler" >/dev/null || fail "no $compiler; DeepSpeed compiles its CPU Adam (Debian: apt-get install build-essential)"
done
header=$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
[[ -f $header ]] || fail "no Python headers ($header); install them (Debian: python3-dev)"
free_gb=$(($(df --output=avail -k . | tail -1) / 1024 / 1024))
((free_gb >= MIN_FREE_GB)) || fail "$free_gb GB free here, $MIN_FREE_GB GB needed; free some space or clone elsewhere"

stage "environment .venv with $("$python" -I --version) ($mode)"
if [[ ! -x .venv/bin/python ]] || ! usable .venv/bin/python; then
  "$python" -I -m venv --clear .venv
fi
echo "$mode" >.venv/.gptoss-rl-mode
rm -f "$STAMP"

sets=(-r "requirements/$mode.txt" -r requirements/dev.txt)
stage "installing $(cat "requirements/$mode.txt" requirements/dev.txt | wc -l) pinned packages"
install() { VIRTUAL_ENV=$PWD/.venv .venv/bin/uv pip install --quiet --no-deps "$@"; }
if .venv/bin/python -I -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"; then
  install "${sets[@]}" || {
    echo "setup_env: uv could not install the set; trying pip, which is slower" >&2
    install() { .venv/bin/python -I -m pip install --disable-pip-version-check --no-deps "$@"; }
    install "${sets[@]}"
  }
else
  fail "pip cannot reach a package registry; connect this machine or configure pip for your mirror"
fi

stage "this repository"
install --no-build-isolation -e .
stage "byte-compiling (every process of a run imports all of it)"
# A few packages ship files for other versions of Python, which do not compile; that is theirs.
.venv/bin/python -I -m compileall -q -j 0 .venv/lib/python3.*/site-packages >/dev/null 2>&1 || true

stage "patch stack"
bash apply_patches.sh
if [[ $mode == cpu ]]; then
  stage "compiling DeepSpeed's CPU Adam"
  PATH="$PWD/.venv/bin:$PATH" DS_ACCELERATOR=cpu .venv/bin/python -W ignore -c \
    'from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load(verbose=False)' >/dev/null
fi
echo "$wanted" >"$STAMP"
stage "done; next: bash train_grpo_tiny_cpu.sh, or bash run_tests.sh"
