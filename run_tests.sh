#!/usr/bin/env bash
# Set up the CPU environment if needed and run everything: style, fast tests, tests that start vLLM engines, whole runs.
#
#   bash run_tests.sh                 # all of it; what CI runs
#   bash run_tests.sh --fast          # no engines, no runs
#   bash run_tests.sh tests/test_reward_func_em.py -k harmony       # any arguments of pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

bash setup_env.sh cpu
.venv/bin/ruff check .
.venv/bin/ruff format --check .

export PYTHONDONTWRITEBYTECODE=1
if [[ ${1:-} == --fast ]]; then
  shift
  set -- -m "not engine and not e2e" "$@"
fi
exec .venv/bin/python -m pytest --durations=10 "$@"
