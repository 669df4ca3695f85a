#!/usr/bin/env bash
# Stage 2 on AFHQ with the paper's settings: 32 images a step, shared out among GPUS. Takes stage 1's result of the same
# EXPNAME, or another with --renderer_ckpt. Resumes by itself; further arguments go to the training.
#     GPUS=8 bash scripts/train_afhq_full_pipeline_512x512.sh --wandb
#
# Expected: the paper reports an FID of 12.8 on AFHQ at 256x256 pixels, after 300,000 steps.
# We have not run it to the end: it takes several GPUs and days.
set -euo pipefail
source "$(dirname "$0")/training.sh"
gpus=${GPUS:-4}
batch=$(share 32 "$gpus")
exec torchrun --standalone --nproc_per_node "$gpus" train_full_pipeline.py \
    --expname "${EXPNAME:-afhq_paper}" --dataset_path "${DATASET:-datasets/AFHQ}" --size 512 \
    --azim 0.15 --r1 50 --batch "$batch" --chunk "${CHUNK:-4}" --continue_training "$@"
