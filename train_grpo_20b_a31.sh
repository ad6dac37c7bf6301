#!/usr/bin/env bash
# gpt-oss-20b on 8 x A30, variant A31, the recommended one: A30 without computing groups whose rewards are all equal (they
# have no gradient), with a correction for the difference between sampler and trainer, and with a learning rate for a LoRA.
# Usage as train_grpo_20b.sh.
set -euo pipefail
export RUN_NAME=${RUN_NAME:-a31-$(date +%Y%m%d-%H%M%S)}

# 1e-6 is what full fine-tuning with RL is run at; a LoRA's best rate is ten times that of full fine-tuning, in RL as in
# supervised learning (Schulman et al., "LoRA Without Regret", 2025). A30's 5e-7 hardly moves an adapter. Untried at 20B.
learning_rate=1e-5

# Truncated importance sampling: engines compute MXFP4 experts and their own attention kernel, the trainer bf16 and eager;
# published differences for this model family are 0.08 to 0.14 nats a token.
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_grpo_20b_a30.sh" \
  --actor_learning_rate "$learning_rate" \
  --zero_variance skip \
  --is_correction tis \
  "$@"
