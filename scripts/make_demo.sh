#!/usr/bin/env bash
# How the model in demo/ was made: a small field trained on two CPU cores (hours), from its weights a wider one on a GPU
# (eight minutes), the last steps of the decoder on the CPU cores again, and the encoder for photos. demo/README.md says
# what it is like.
#     FEATURES=lite0_maps.pt bash scripts/make_demo.sh cats.zip
# cats.zip held the first 5,000 of the 5,069 photos; FEATURES is the file of
# `python benchmarks/lite_features.py maps lite0 --out lite0_maps.pt`. Without it torchvision's network is taken.
set -euo pipefail
cd "$(dirname "$0")/.."

# The small field. What was really begun with is the demonstration model of the release before, made by this script.
EXPNAME=cats_small bash scripts/train_cats_small.sh "$@"
EXPNAME=cats_128 START=full_models/cats_small.pt bash scripts/train_one_gpu.sh "$@"

# When this was run there was no --ema_rampup yet, and the decoder's moving average lagged far behind its weights. So the
# weights themselves took its place, before and after the last steps. Those have a smaller learning rate and a stronger
# pull toward the thumbnails.
weights_as_average() { # FILE OUT
    python - "$1" "$2" <<'PYTHON'
import sys
import torch
saved = torch.load(sys.argv[1], weights_only=True)
torch.save({key: saved[key] for key in ('g', 'd', 'options')} | {'g_ema': saved['g']}, sys.argv[2])
PYTHON
}
weights_as_average full_models/cats_128.pt cats_128_start.pt
python train_full_pipeline.py --expname cats_last --dataset_path datasets/cats_128 --size 128 --azim 0.15 \
    --renderer_ckpt cats_128_start.pt --init_ckpt cats_128_start.pt --channel_multiplier 1 --channel_max 128 \
    --batch 8 --chunk 8 --num_workers 0 --g_reg_every 0 --thumbnail_lambda 20 --augment --lr 0.0005 \
    --discriminator projected ${FEATURES:+--features "$FEATURES"} --iter 60
weights_as_average full_models/cats_last.pt cats_train.pt
python export_model.py --model cats_train.pt --out demo/cats_demo.pt
# demo/cats_train.pt is cats_train.pt in half precision.
python invert_photos.py --model demo/cats_demo.pt --train_encoder
