"""The folder of a run: free, in use, or left behind by a start that failed."""

import argparse
from pathlib import Path

from gptoss_rl.errors import GateError
from gptoss_rl.run_files import launcher_alive, read_json, read_json_lines

FAILED_STARTS = "failed_starts"  # in the run's folder: what starts left that took no step, 1, 2, ...


def steps_taken(folder: Path) -> int:
    """The last step that a run wrote down; 0 when it took none."""
    return max((record.get("step", 0) for record in read_json_lines(folder / "metrics.jsonl")), default=0)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to resume from, in the run's own folder of checkpoints."""
    return (folder / "checkpoints" / "_actor" / "latest").is_file()


def may_be_alive(folder: Path) -> bool:
    """Whether the launcher that made this folder is there, or is another host's, of which this one cannot tell."""
    record = read_json(folder / "process.json")
    return bool(record) and launcher_alive(record) is not False and not read_json(folder / "exit.json")


def is_failed_start(folder: Path) -> bool:
    """Whether a launcher has made this folder, is gone, and left neither a step nor a checkpoint."""
    if not any(folder.glob("command*.txt")) or may_be_alive(folder):
        return False
    return not steps_taken(folder) and not has_checkpoint(folder)


def check_unoccupied(args: argparse.Namespace) -> None:
    """Raises GateError when a run that is not being resumed would write among another's files."""
    folder = Path(args.run_dir)
    if folder.exists() and not folder.is_dir():
        raise GateError("flags", f"--run_dir {folder} is a file; choose another")
    if args.load_checkpoint or not folder.exists() or not (set(folder.iterdir()) - {folder / FAILED_STARTS}):
        return
    if not any(folder.glob("command*.txt")):
        raise GateError("flags", f"--run_dir {folder} already holds a run or other files; choose another, or an empty one")
    if may_be_alive(folder):
        host = read_json(folder / "process.json").get("host")
        raise GateError("flags", f"{folder} already holds a run, which may still be going on {host}; choose another --run_dir")
    if has_checkpoint(folder):
        raise GateError(
            "flags", f"{folder} already holds a run; choose another --run_dir, or pass --load_checkpoint to resume it"
        )
    if steps_taken(folder):
        raise GateError(
            "flags",
            f"{folder} already holds a run: {steps_taken(folder)} steps, and no checkpoint to resume from; choose another "
            "--run_dir (a smaller --save_steps keeps more)",
        )


def set_failed_start_aside(folder: Path) -> Path | None:
    """Make the folder of a start that took no step free; what it left goes to `failed_starts/N`, which is returned."""
    if not folder.is_dir() or not is_failed_start(folder):
        return None
    earlier = folder / FAILED_STARTS
    number = 1 + max((int(path.name) for path in earlier.glob("[0-9]*") if path.name.isdigit()), default=0)
    aside = earlier / str(number)
    aside.mkdir(parents=True)
    left = [path for path in folder.iterdir() if path != earlier]
    # What makes the folder a run's goes last: cut off in between, the next call goes on.
    for path in sorted(left, key=lambda path: path.name.startswith("command")):
        path.rename(aside / path.name)
    return aside
