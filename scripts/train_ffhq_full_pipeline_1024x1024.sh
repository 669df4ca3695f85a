#!/usr/bin/env bash
# Stage 2 on FFHQ with the paper's settings: 32 images a step, shared out among GPUS. Takes stage 1's result of the same
# EXPNAME, or another with --renderer_ckpt. Resumes by itself; further arguments go to the training.
#     GPUS=8 bash scripts/train_ffhq_full_pipeline_1024x1024.sh --wandb
#
# Expected: the paper reports an FID of 11.5 on FFHQ at 256x256 pixels, after 300,000 steps.
# We have not run it to the end: it takes several GPUs and days.
set -euo pipefail
source "$(dirname "$0")/training.sh"
gpus=${GPUS:-4}
batch=$(share 32 "$gpus")
exec torchrun --standalone --nproc_per_node "$gpus" train_full_pipeline.py \
    --expname "${EXPNAME:-ffhq_paper}" --dataset_path "${DATASET:-datasets/FFHQ}" --size 1024 \
    --batch "$batch" --chunk "${CHUNK:-2}" --continue_training "$@"
