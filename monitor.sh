#!/usr/bin/env bash
# A live view of a run in the terminal, over plain SSH; on a running, finished, crashed or resumed run.
#
#   bash monitor.sh                      # the newest run under runs/
#   bash monitor.sh runs/NAME --once     # once, for a cron mail, as is any output that is no terminal; --json for a script
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
[[ -x .venv/bin/python ]] || { echo "no environment here; run: bash setup_env.sh cpu (or gpu)" >&2; exit 1; }
exec .venv/bin/python -m gptoss_rl.watch.monitor "$@"
