"""A copy of the repository in which commands of the README are typed as they stand, with made-up data and the tiny model."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from gptoss_rl.data.numina_fixture import frame, row

ROOT = Path(__file__).resolve().parent.parent
SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu", "za")


class Workplace:
    """Commands are run by bash in the copy; `python` is the environment's."""

    def __init__(self, folder: Path):
        self.folder = folder
        tracked = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
        )
        for name in filter(None, tracked.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        (folder / "bin").mkdir()
        python = folder / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)

    def type(self, line: str, more: str = "", timeout: int = 900, **env: str) -> subprocess.CompletedProcess:
        """Run a line of the README, with `more` flags that make it short; `printed` holds all output."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", f"{line} {more}"], cwd=self.folder, env={**os.environ, "PATH": path, **env},
                              capture_output=True, text=True, check=False, timeout=timeout)  # fmt: skip
        done.printed = done.stdout + done.stderr
        return done

    def must(self, line: str, more: str = "", **env: str) -> str:
        """As `type`, of a line that must succeed; what it printed."""
        done = self.type(line, more, **env)
        assert done.returncode == 0, f"{line} {more}\n{done.printed[-4000:]}"
        assert "Traceback" not in done.printed
        return done.printed


def problem(number: int) -> str:
    """A question in words of its own, so that no two are alike in any form."""
    rng = random.Random(number)
    words = ["".join(rng.choice(SYLLABLES) for _ in range(3)) for _ in range(9)]
    return (
        f"The {words[0]} of {words[1]} holds {number} {words[2]} beside the {words[3]} {words[4]}. How many {words[5]} does "
        f"the {words[6]} {words[7]} carry to the {words[8]}?"
    )


def write_sources(folder: Path) -> None:
    """Every source of the data scripts, made up, large enough for their real sizes."""
    folder.mkdir(parents=True)
    frame([row(problem(n), str(n)) for n in range(3_400)]).write_parquet(folder / "numinamath15.parquet")
    for name, start, size in (("math_train", 10_000, 4_000), ("math_test", 20_000, 2_530)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            for n in range(start, start + size):
                made = {"problem": problem(n), "level": "Level 5", "answer": str(n), "unique_id": f"{name}/{n}"}
                file.write(json.dumps(made) + "\n")
    sizes = {"aime24": 30, "aime25": 30, "amc23": 40, "olympiadbench": 50, "apex_shortlist": 2}
    for number, (name, size) in enumerate(sizes.items()):
        rows = [{"problem": problem(30_000 + 100 * number + n), "answer": str(n)} for n in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
