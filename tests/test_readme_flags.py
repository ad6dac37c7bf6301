"""Every command of README.md and docs/ is read by its script's own parser: a flag that was renamed is missed here."""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import readme
from workplace import ROOT

from gptoss_rl.errors import GateError
from gptoss_rl.flags import ENTRY_POINT, openrlhf_parser_source, parse

# `hf` has another project's parser, and test_readme.py calls it. The others read one word, in bash.
NOT_OURS = (".venv/bin/hf",)
IN_BASH = {"setup_env.sh": ("cpu", "gpu"), "run_tests.sh": ()}
COMMANDS = sorted(line for line in readme.commands() if not line.startswith(("#", *NOT_OURS)))


class Read(BaseException):
    """The parser has read its command; nothing after that is wanted. No Exception, so that no script catches it."""


def read(line: str) -> None:
    """Raises SystemExit or GateError when the command is not understood."""
    _, script, *words = (word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word))
    if script in IN_BASH:
        assert set(words) <= set(IN_BASH[script]), line
    elif script.startswith("train_grpo"):
        read_flags(script, words)
    elif script.endswith(".sh"):
        launchers = [word for word in words if word.endswith(".sh")]
        (module,) = re.findall(r"-m (gptoss_rl[\w.]+)", (ROOT / script).read_text())
        rest = read_by_argparse(["-m", module], [word for word in words if word not in launchers])
        for launcher in launchers:
            read_flags(launcher, rest)
    elif script == "-m":
        read_by_argparse(["-m", words[0]], words[1:])
    else:
        read_by_argparse([script], words)


def read_flags(launcher: str, words: list[str]) -> None:
    """By OpenRLHF's parser, with ours in it."""
    done = subprocess.run(["bash", launcher, *words], cwd=ROOT, env={**os.environ, "DRY_RUN": "1"}, capture_output=True,
                          text=True, check=True)  # fmt: skip
    printed = shlex.split(done.stdout)
    parse(printed[printed.index(ENTRY_POINT) + 1 :])


def read_by_argparse(script: list[str], words: list[str]) -> list[str]:
    """Run a script until its parser has read `words`; those that it leaves to another parser."""
    rest: list[str] = []
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def strictly(parser, args=None, namespace=None):
        parser.allow_abbrev = False  # the beginning of a longer name is no longer the name
        found = parse_known_args(parser, args, namespace)
        if sys._getframe(1).f_globals["__name__"] != "argparse":  # the script itself, which then looks at the rest
            rest.extend(found[1])
            raise Read
        return found

    parse_args = argparse.ArgumentParser.parse_args

    def wholly(parser, args=None, namespace=None):
        parse_args(parser, args, namespace)
        raise Read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", strictly)
        patch.setattr(argparse.ArgumentParser, "parse_args", wholly)
        patch.setattr(sys, "argv", [script[-1], *words])
        if script[0] == "-m":
            name = script[1]
            with pytest.raises(Read):
                runpy.run_module(name, run_name="__main__")
        elif "argparse" in (ROOT / script[0]).read_text():
            with pytest.raises(Read):
                runpy.run_path(str(ROOT / script[0]), run_name="__main__")
        else:
            assert words == [], f"{script[0]} reads no words"
    return rest


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood(line: str) -> None:
    read(line)


@pytest.mark.parametrize(
    "line",
    [
        "python eval_apex.py --model_path models/gpt-oss-20b --n_sample 16",
        "python -m gptoss_rl.stats plan --problems 1000",
        "python -m gptoss_rl.data check",
        "python test_lora_fix.py --fast",
        "bash monitor.sh --mail",
        "bash train_grpo_20b_a31.sh --lora_sync merge",
        "bash preflight_lr.sh train_grpo_20b_a31.sh --prompts 3200",
        "bash setup_env.sh tpu",
    ],
)
def test_a_command_with_a_name_that_is_none_is_not(line: str) -> None:
    # Otherwise the test above might let everything pass.
    with pytest.raises((SystemExit, GateError, AssertionError)):
        read(line)


def test_flags_in_running_text_exist() -> None:
    named = set(re.findall(r"`(--[a-z][\w-]*)", readme.TEXT))
    files = [*ROOT.glob("*.py"), *ROOT.glob("*.sh"), *(ROOT / "gptoss_rl").rglob("*.py"), openrlhf_parser_source()]
    defined = {flag for path in files for flag in re.findall(r"[\"'= |(](--[a-z][\w-]*)", path.read_text())}
    assert named - defined == set()
    assert len(named) > 20
