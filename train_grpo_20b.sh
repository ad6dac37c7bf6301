#!/usr/bin/env bash
# DR-GRPO on gpt-oss-20b with LoRA and exact-match reward: the template in which every flag stands once.
#
# Hardware  one node, 8 cards of 24 GB (A30). Cards 0-3: two vLLM engines, TP=2, MXFP4. Cards 4-7: ZeRO-3 with
#           parameters and optimizer in host memory (about 42 GB for the BF16 base, in all).
# Hours     never measured on this hardware; preflight_lr.sh prints the number of steps.
# Memory    an engine card holds 7.4 GB of weights, the rest of its share is KV cache; preflight.py estimates the others.
#
#   bash train_grpo_20b_a30.sh                               # the variants are what one runs
#   DRY_RUN=1 bash train_grpo_20b.sh                         # print the command and stop
#   RAY_ADDRESS=10.0.0.1:6379 bash train_grpo_20b_a30.sh --actor_num_nodes 2      # on a Ray cluster that is up
#
# Any flag can be given again at the end: the last one wins. RUN_NAME names the folder under runs/. preflight.py looks before
# anything starts; PREFLIGHT=0 goes on in spite of what it says (its estimates may be wrong), the gates of the launch stay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PYTHON=.venv/bin/python
RUN_NAME=${RUN_NAME:-$(date +%Y%m%d-%H%M%S)}

model=(
  --pretrain models/gpt-oss-20b-bf16          # the trainer needs BF16: MXFP4 experts have no backward
  --vllm_pretrain models/gpt-oss-20b          # the engines serve the released MXFP4 checkpoint: the same function
  --attn_implementation eager                 # on Ampere nothing else keeps the attention sinks and has a backward
  --lora_rank 32 --lora_alpha 64              # 15.9 M parameters, 32 MB in bf16
  --target_modules q_proj k_proj v_proj o_proj
)
data=(
  --prompt_data data/sft_rl_pool_3200.jsonl
  --eval_dataset data/probe_set_200_ood.jsonl
  --input_key input --label_key label
  --apply_chat_template                       # renders gptoss_rl/prompts.py, whose date is pinned
  --reasoning_effort medium
  --remote_rm_url reward_func_em.py
  --prompt_max_len 1024 --generate_max_len 4096   # tokens; longer prompts are refused, not cut
)
placement=(
  --actor_num_nodes 1 --actor_num_gpus_per_node 4
  --vllm_num_engines 2 --vllm_tensor_parallel_size 2
)
batch=(
  --rollout_batch_size 16 --n_samples_per_prompt 8    # 128 samples a global step
  --train_batch_size 16                               # 8 optimizer steps a global step
  --micro_train_batch_size 1 --micro_rollout_batch_size 2
  --micro_batch_max_tokens 5120                       # eager attention: 14 GB for 1 x 5,120 tokens, 28 GB for 2 x 5,120
  --num_episodes 1 --max_epochs 1
)
algorithm=(
  --advantage_estimator dr_grpo               # reward minus group mean, no division by the standard deviation
  --loss_normalizer constant                  # sum over tokens / (train_batch_size x generate_max_len), the paper's
  --eps_clip 0.2
  --init_kl_coef 0                            # above 0: KL to the base, the policy without its adapter; one more pass
  --actor_learning_rate 5e-7 --lr_scheduler cosine_with_min_lr --lr_warmup_ratio 0.03    # decays to 5e-8
  --max_norm 1.0
  --temperature 1.0 --top_p 1.0               # the trainer cannot reproduce truncated probabilities
  --seed 42
)
memory=(
  --zero_stage 3 --param_dtype bf16
  --offload --adam_offload                    # parameters and optimizer states in host memory
  --gradient_checkpointing --gradient_checkpointing_use_reentrant    # the other kind fails with LoRA under ZeRO-3
)
engine=(
  --vllm_lora_sync adapter                    # exact; merging rounds most of an early update away
  --vllm_gpu_memory_utilization 0.85
  --vllm_max_num_seqs 64
  --vllm_max_num_batched_tokens 4096
  --vllm_max_cudagraph_capture_size 64        # vLLM captures up to 1024 for gpt-oss, which 24 GB cannot hold
)
run=(
  --run_dir "runs/$RUN_NAME"
  --eval_steps 20 --eval_temperature 0 --eval_n_samples_per_prompt 1
  --save_steps 20 --max_ckpt_num 3
)
flags=(
  "${model[@]}" "${data[@]}" "${placement[@]}" "${batch[@]}" "${algorithm[@]}" "${memory[@]}" "${engine[@]}" "${run[@]}"
  "$@"
)

if [[ ${DRY_RUN:-0} == 1 ]]; then
  printf '%q ' "$PYTHON" -m openrlhf.cli.train_ppo_ray "${flags[@]}"
  echo
  exit 0
fi

[[ -x $PYTHON ]] || { echo "no environment here; run: bash setup_env.sh" >&2; exit 1; }
# Inherited by every process of this run: what is still there when it has ended, is ended too.
export GPTOSS_RL_LAUNCH=$$-$(date +%s%N)
trap '"$PYTHON" -m gptoss_rl.run.leftovers' EXIT
# Seconds for which Ray's processes try to reach a head that has died; a minute unless told. A head of one's own never comes back.
[[ -n ${RAY_ADDRESS:-} ]] || export RAY_gcs_rpc_server_reconnect_timeout_s=3
"$PYTHON" -m gptoss_rl.sync.cluster "${flags[@]}"    # at once, what would otherwise be found after much loading
run_dir=$("$PYTHON" preflight.py --launch "${flags[@]}")
echo "run directory: $run_dir"
export WANDB_DIR=${WANDB_DIR:-$run_dir}    # under --use_wandb
status=0
logged=$(stat -c %s "$run_dir/train.log" 2>/dev/null || echo 0)    # bytes, of a run that is resumed
"$PYTHON" -m openrlhf.cli.train_ppo_ray "${flags[@]}" 2>&1 | tee -a "$run_dir/train.log" || status=$?
"$PYTHON" -m gptoss_rl.run.leftovers || echo "not everything that the run left could be ended (the message is above)" >&2
[[ $status != 0 ]] || "$PYTHON" -m gptoss_rl.run.summary "$run_dir" || status=$?
"$PYTHON" -m gptoss_rl.run.ending "$run_dir" "$status" "$logged"    # how a reader knows a stopped run from a crashed one
# Of a run that was stopped, too: it says by which gate.
"$PYTHON" -m gptoss_rl.report "$run_dir" || echo "the report could not be written (its message is above)" >&2
exit "$status"
