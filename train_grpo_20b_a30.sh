#!/usr/bin/env bash
# gpt-oss-20b on 8 x A30, variant A30: A29b with two samples a micro-batch where both have up to 2,560 tokens (half of
# --micro_batch_max_tokens), so that ZeRO-3 streams its 42 GB over PCIe less often; full-length samples go alone in both.
# 3,200 prompts, 200 global steps, 1,600 optimizer steps. Usage as train_grpo_20b.sh.
set -euo pipefail
export RUN_NAME=${RUN_NAME:-a30-$(date +%Y%m%d-%H%M%S)}
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_grpo_20b_a29b.sh" \
  --micro_train_batch_size 2 \
  "$@"
