"""Write the report of a run, or compare runs in one.

python -m gptoss_rl.report runs/NAME                    # writes runs/NAME/report.html
python -m gptoss_rl.report runs/A runs/B --output compare.html
"""

import argparse
import sys
from pathlib import Path

from gptoss_rl.report import ReportError, build
from gptoss_rl.run_files import write_text_atomically
from gptoss_rl.watch.run_view import RunView


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gptoss_rl.report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run directories; the first is what the others are compared with")
    parser.add_argument("--output", type=Path, help="default: report.html in the first run")
    args = parser.parse_args()
    output = args.output or args.runs[0] / "report.html"
    if output.is_dir():
        parser.error(f"--output {output} is a directory; name a file in it")
    try:
        write_text_atomically(output, build(args.runs))
    except (OSError, ReportError) as error:
        sys.exit(f"report: {error}")
    print(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB)")
    if len(args.runs) == 1 and (view := RunView(args.runs[0])).state() == "stopped":
        print(f"the run was stopped: {' '.join(view.messages(1)) or f'see the end of {view.folder}/train.log'}")


if __name__ == "__main__":
    main()
