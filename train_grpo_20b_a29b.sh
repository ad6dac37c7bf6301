#!/usr/bin/env bash
# gpt-oss-20b on 8 x A30, variant A29b: the template (one sample a micro-batch) with a tight clip.
# Usage as train_grpo_20b.sh.
set -euo pipefail
export RUN_NAME=${RUN_NAME:-a29b-$(date +%Y%m%d-%H%M%S)}
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_grpo_20b.sh" \
  --eps_clip 0.1 \
  "$@"
