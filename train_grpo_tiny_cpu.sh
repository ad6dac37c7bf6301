#!/usr/bin/env bash
# DR-GRPO on a tiny gpt-oss, on a laptop's CPU, through the same stack as the 20B model: patched OpenRLHF, Ray,
# DeepSpeed ZeRO-3, vLLM's CPU build, LoRA, exact-match reward. It makes what it needs: environment, model, problems.
#
# Hardware  2 cores, 12 GB of memory, 15 GB of disk; no GPU.
#
#   bash train_grpo_tiny_cpu.sh                              # set up, train, evaluate, closing table
#   bash train_grpo_tiny_cpu.sh --seed 7                     # another seed
#   bash train_grpo_tiny_cpu.sh --vllm_num_engines 2 --num_devices 3       # two engines
#
# Any flag of OpenRLHF or of gptoss_rl/flags.py can be given at the end: the last one wins.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

export RUN_NAME=${RUN_NAME:-tiny-$(date +%Y%m%d-%H%M%S)}
export DS_ACCELERATOR=cpu
export HF_HUB_OFFLINE=1                  # everything is local; a hub that is out of reach would only cost time
export TOKENIZERS_PARALLELISM=false
export VLLM_CPU_KVCACHE_SPACE=1          # GiB; the default of 4 per worker does not fit twice on a laptop
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}    # several processes share two cores; spinning threads cost 10 x
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore}

if [[ ${DRY_RUN:-0} != 1 ]]; then
  bash setup_env.sh cpu
  .venv/bin/python make_tiny_gptoss.py
fi

exec bash train_grpo_20b.sh \
  --pretrain models/tiny-gptoss --vllm_pretrain models/tiny-gptoss \
  --prompt_data data/tiny_train.jsonl --eval_dataset data/tiny_eval.jsonl --reasoning_effort low \
  --prompt_max_len 96 --generate_max_len 32 \
  --actor_num_gpus_per_node 1 --vllm_num_engines 1 --vllm_tensor_parallel_size 1 --num_devices 2 \
  --rollout_batch_size 8 --n_samples_per_prompt 8 --train_batch_size 64 --max_samples 320 \
  --micro_train_batch_size 32 --micro_rollout_batch_size 32 \
  --zero_variance skip \
  --lora_rank 16 --lora_alpha 32 --actor_learning_rate 1e-3 --lr_scheduler constant_with_warmup \
  --no_offload --no_gradient_checkpointing --param_dtype fp32 \
  --enforce_eager --vllm_max_num_seqs 128 --vllm_max_num_batched_tokens 8192 \
  --parity_max_abs_diff 0.05 --parity_max_kl 0.01 --parity_max_prompt_abs_diff 0.1 \
  --eval_steps -1 --save_steps -1 \
  "$@"
