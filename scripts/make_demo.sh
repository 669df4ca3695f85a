#!/usr/bin/env bash
# How the model in demo/ was made: a small field trained on two CPU cores (hours), from its weights a wider one on a GPU
# (eight minutes), and the last steps of the decoder on the CPU cores again. demo/README.md says what it is like.
#     FEATURES=lite0_maps.pt bash scripts/make_demo.sh cats.zip
# cats.zip held the first 5,000 of the 5,069 photos; FEATURES is the file of
# `python benchmarks/lite_features.py maps lite0 --out lite0_maps.pt`. Without it torchvision's network is taken.
set -euo pipefail
cd "$(dirname "$0")/.."

# The small field. What was really begun with is the demonstration model of the release before, made by this script.
EXPNAME=cats_small bash scripts/train_cats_small.sh "$@"
EXPNAME=cats_128 START=full_models/cats_small.pt bash scripts/train_one_gpu.sh "$@"

# When this was run there was no --ema_rampup yet, and the decoder's moving average lagged far behind its weights. So the
# last steps begin with the weights themselves as the average; their learning rate is smaller, their pull toward the
# thumbnails stronger.
python - <<'PYTHON'
import torch
saved = torch.load('full_models/cats_128.pt', weights_only=True)
torch.save({**saved, 'g_ema': saved['g']}, 'cats_128_start.pt')
PYTHON
python train_full_pipeline.py --expname cats_demo --dataset_path datasets/cats_128 --size 128 --azim 0.15 \
    --renderer_ckpt cats_128_start.pt --init_ckpt cats_128_start.pt --channel_multiplier 1 --channel_max 128 \
    --batch 8 --chunk 8 --num_workers 0 --g_reg_every 0 --thumbnail_lambda 20 --augment --lr 0.0005 \
    --discriminator projected ${FEATURES:+--features "$FEATURES"} --iter 80
python export_model.py --expname cats_demo --out demo/cats_demo.pt
