#!/usr/bin/env bash
# Show the learning-rate schedule that a launcher would train with, and fail when the run would not train as its
# flags suggest: a peak that is never reached, warm-up over 20 %, batches that do not divide, under 20 global steps.
#
#   bash preflight_lr.sh train_grpo_20b_a30.sh
#   bash preflight_lr.sh train_grpo_20b_a30.sh --num_prompts 3200 --actor_learning_rate 1e-5
#   bash preflight_lr.sh train_grpo_tiny_cpu.sh --num_prompts 64 --allow_short
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# The launcher is executed, so nothing else may be given in its place.
launcher=${1:-}
launcher=${launcher#./}
[[ $launcher == train_grpo_*.sh && $launcher != */* && -f $launcher ]] || {
  echo "usage: bash preflight_lr.sh train_grpo_NAME.sh [FLAGS]; here are: $(echo train_grpo_*.sh)" >&2
  exit 2
}
shift
[[ -x .venv/bin/python ]] || { echo "no environment here; run: bash setup_env.sh" >&2; exit 1; }
command=$(DRY_RUN=1 bash "$launcher" "$@")
# The launcher printed its words quoted for the shell; everything after the module's name is a flag.
eval "words=(${command#* -m openrlhf.cli.train_ppo_ray })"
exec .venv/bin/python -m gptoss_rl.run.preflight_lr "${words[@]}"
