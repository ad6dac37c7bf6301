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
# Two at a time: much of a run is waiting, and loading on one core. A file's tests stay together, see conftest.py.
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist loadgroup --no-loadscope-reorder --durations=15 "${selection[@]}" "$@"
