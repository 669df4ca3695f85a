#!/usr/bin/env bash
# Stage 1 on AFHQ with the paper's settings: 24 images a step, shared out among GPUS. Resumes by itself; further
# arguments go to the training.
#     GPUS=4 bash scripts/train_afhq_vol_renderer.sh --wandb
#
# Expected: beta below 0.003 after 200,000 steps. We have not run it to the end: it takes several GPUs and days.
set -euo pipefail
source "$(dirname "$0")/training.sh"
gpus=${GPUS:-2}
batch=$(share 24 "$gpus")
exec torchrun --standalone --nproc_per_node "$gpus" train_volume_renderer.py \
    --expname "${EXPNAME:-afhq_paper}" --dataset_path "${DATASET:-datasets/AFHQ}" --size "${SIZE:-256}" \
    --azim 0.15 --batch "$batch" --chunk "${CHUNK:-6}" --continue_training "$@"
