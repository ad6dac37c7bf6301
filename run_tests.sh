#!/usr/bin/env bash
# Sets up the CPU environment if needed and runs everything: style, fast tests, tests that start vLLM engines, whole
# runs (conftest.py puts them in that order).
#
#   bash run_tests.sh                 # all of it; what CI runs
#   bash run_tests.sh --fast          # no engines, no runs
#   bash run_tests.sh tests/test_reward_func_em.py -k harmony       # any arguments of pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
unset PYTHONPATH PYTHONHOME

selection=()
if [[ ${1:-} == --fast ]]; then
  selection=(-m "not engine and not e2e")
  shift
fi

bash setup_env.sh cpu
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
exec .venv/bin/python -m pytest --durations=10 "${selection[@]}" "$@"
