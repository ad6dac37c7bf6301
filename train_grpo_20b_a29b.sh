#!/usr/bin/env bash
# gpt-oss-20b on 8 x A30, variant A29b: the template with one sample a micro-batch and a tight clip.
# Fits where A30 does not; A30 streams the offloaded weights half as often. Usage as train_grpo_20b.sh.
set -euo pipefail
export RUN_NAME=${RUN_NAME:-a29b-$(date +%Y%m%d-%H%M%S)}
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_grpo_20b.sh" \
  --micro_train_batch_size 1 \
  --eps_clip 0.1 \
  "$@"
