#!/usr/bin/env bash
# Stage 1 on FFHQ with the paper's settings: 24 images a step, shared out among GPUS. Resumes by itself; further
# arguments go to the training.
#     GPUS=4 bash scripts/train_ffhq_vol_renderer.sh --wandb
#
# Expected: beta below 0.003 after 200,000 steps. We have not run it to the end: it takes several GPUs and days.
set -euo pipefail
source "$(dirname "$0")/training.sh"
gpus=${GPUS:-2}
batch=$(share 24 "$gpus")
exec torchrun --standalone --nproc_per_node "$gpus" train_volume_renderer.py \
    --expname "${EXPNAME:-ffhq_paper}" --dataset_path "${DATASET:-datasets/FFHQ}" --size "${SIZE:-256}" \
    --batch "$batch" --chunk "${CHUNK:-6}" --continue_training "$@"
