"""The patch stack on packages that pip installs and on a copy of the real OpenRLHF."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from stack_fixture import NEW1, PACKAGE, PRISTINE, make_wheel, stack_one, stack_two, write_files

from gptoss_rl.stack.apply import apply, check_stack
from gptoss_rl.stack.installed import digests_of, fingerprint, read_tree
from gptoss_rl.stack.series import ROOT, load_stack
from gptoss_rl.stack.unified_diff import PatchStackError

quiet = {"say": lambda text: None}


def installed(site: Path) -> dict[str, bytes]:
    return read_tree(site / PACKAGE)


def run(*command: object, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=300,
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder)
    return folder


def pip(environment: Path, *words: object) -> None:
    done = run(sys.executable, "-m", "pip", "--isolated", "--python", environment / "bin/python", *words)
    assert done.returncode == 0, done.stderr


def test_a_reinstall_by_pip_is_recognised_and_patched_again(environment, tmp_path):
    wheel, patches = make_wheel(tmp_path), stack_one(tmp_path / "patches")
    pip(environment, "install", "--no-index", "--no-deps", wheel)
    site = next((environment / "lib").glob("python3*/site-packages"))
    # pip adds to RECORD only what is not the package's source, so the fixture's pin still holds
    apply(site, patches, **quiet)
    assert installed(site) == NEW1
    pip(environment, "install", "--no-index", "--no-deps", "--force-reinstall", wheel)
    # RECORD never listed the file that a patch created, so pip left it
    left = {name: content for name, content in NEW1.items() if name.endswith("extra.py")}
    assert installed(site) == {**PRISTINE, **left}
    with pytest.raises(PatchStackError, match="is not patched"):
        check_stack(site, patches)
    assert apply(site, patches, **quiet) == check_stack(site, patches)
    pip(environment, "uninstall", "--yes", PACKAGE)
    with pytest.raises(PatchStackError, match="is not installed"):
        check_stack(site, patches)
    pip(environment, "install", "--no-index", "--no-deps", wheel)
    apply(site, patches, **quiet)
    assert installed(site) == NEW1


def test_the_gate_sees_a_package_that_shadows_the_checked_one(environment, tmp_path):
    wheel, patches = make_wheel(tmp_path), stack_two(tmp_path / "patches")
    pip(environment, "install", "--no-index", "--no-deps", "--force-reinstall", wheel)
    code = (
        "from pathlib import Path; from gptoss_rl.stack.apply import apply, check_stack;"
        f"p = Path({str(patches)!r}); apply(patches=p); print(check_stack(patches=p))"
    )
    python = environment / "bin/python"
    good = run(python, "-c", code, PYTHONPATH=str(ROOT))
    assert "is pristine + 1 patches" in good.stdout.splitlines()[-1], good.stderr
    write_files(tmp_path / "elsewhere", PRISTINE)
    bad = run(python, "-c", code, PYTHONPATH=f"{ROOT}:{tmp_path / 'elsewhere'}")
    assert bad.returncode == 1
    assert f"Python would import fakelib from {tmp_path}/elsewhere/fakelib/__init__.py" in bad.stderr


@pytest.fixture
def real_site(tmp_path) -> Path:
    """A copy of the installed OpenRLHF, whatever state it is in."""
    source = Path(importlib.metadata.distribution("openrlhf").locate_file("")).resolve()
    site = tmp_path / "site-packages"
    for entry in source.iterdir():
        if entry.name.lstrip(".").startswith("openrlhf"):
            shutil.copytree(entry, site / entry.name)
    return site


def test_the_real_series_goes_on_and_off_the_real_package(real_site, tmp_path):
    def script(*words):
        # run from elsewhere: nothing may depend on the working directory
        command = ["bash", ROOT / "apply_patches.sh", *words, "--target", real_site]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    stack = load_stack()
    assert script("--restore").returncode == 0
    assert fingerprint(digests_of(read_tree(real_site / "openrlhf"))) == stack.base.tree_sha256
    assert script("--check").returncode == 1
    assert "is not patched" in script("--check").stderr
    dry = script("--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert fingerprint(digests_of(read_tree(real_site / "openrlhf"))) == stack.base.tree_sha256
    done = script()
    assert done.returncode == 0, done.stderr
    assert f"pristine + {len(stack.patches)} patches" in done.stdout
    assert script("--check").returncode == 0
    with open(real_site / "openrlhf/models/actor.py", "a") as file:
        file.write("# edited\n")
    bad = script("--check")
    assert bad.returncode == 1
    assert bad.stderr.startswith("apply_patches: openrlhf 0.9.3 in ")
    assert "openrlhf/models/actor.py (changed)" in bad.stderr
