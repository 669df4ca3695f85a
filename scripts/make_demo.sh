#!/usr/bin/env bash
# How the model in demo/ was made: from the model of the release before, in 20 minutes on an H200 and five minutes of a CPU
# core for the encoder of photos. demo/README.md says what it is like, docs/notes/training.md how the training went.
#     FEATURES=lite0_maps.pt bash scripts/make_demo.sh cats.zip
# cats.zip held the first 5,000 of the 5,069 photos; FEATURES is the file of
# `python benchmarks/lite_features.py maps lite0 --out lite0_maps.pt`. Without it torchvision's network is taken.
set -euo pipefail
cd "$(dirname "$0")/.."
export TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1  # PyTorch's own switch for quicker matrix products with fewer digits
FEATURES=${FEATURES:-}

# The model of the release before (git show 78aac14:scripts/make_demo.sh is how that was made).
git show 78aac14:demo/cats_demo.pt > before.pt
python prepare_data.py --out_path datasets/cats_128 --size 128 "$@"
common=(--dataset_path datasets/cats_128 --size 128 --azim 0.15 --batch 32 --chunk 32 ${FEATURES:+--features "$FEATURES"})

# Stage 1 goes on at 32x32 rays. This part was one of seven runs that shared the GPU for four minutes.
python train_volume_renderer.py "${common[@]}" --expname cats_first --init_ckpt before.pt --iter 824 \
    --renderer_spatial_output_dim 32 --width 128 --N_samples 16 --discriminator projected --projected_lambda 0.05 \
    --discriminator_width 0.5 --lr_g 1e-4 --lr_d 2e-4 --r1 0.5 --r1_every 4 --sphere_radius 0.09 --sphere_lambda 0.6 \
    --sphere_until 1000000 --ema_rampup 0.05

# Both stages. The decoder goes on from the one of the release before. (When this was run, stage 1's discriminators began
# anew here, because only the generator had been brought back from the GPU.)
DATASET=datasets/cats_128 EXPNAME=cats_128 START=pretrained_renderer/cats_first_vol_renderer.pt DECODER=before.pt \
    bash scripts/train_one_gpu.sh

# The last steps of the decoder, with a smaller learning rate.
python train_full_pipeline.py "${common[@]}" --expname cats_last --init_ckpt full_models/cats_128.pt --iter 780 \
    --channel_multiplier 1 --channel_max 128 --discriminator both --projected_lambda 0.5 --r1 1 --g_reg_every 0 \
    --thumbnail_lambda 10 --augment --augment_images 300000 --lr 0.0004 --ema_rampup 0.05 --dense

# The model is the mean of the moving averages at the ends of the last two parts, which is a longer moving average. The
# file for fine-tuning has StyleGAN2's discriminator alone beside it, which needs no feature network.
python - <<'PYTHON'
import torch

before, last = (torch.load(f'full_models/{name}.pt', weights_only=True) for name in ('cats_128', 'cats_last'))
mean = {name: (before['g_ema'][name] + tensor) / 2 for name, tensor in last['g_ema'].items()}
own = {name: tensor for name, tensor in last['d'].items() if not name.startswith('projected.')}
half = {part: {name: tensor.half() for name, tensor in state.items()}
        for part, state in (('g', mean), ('g_ema', mean), ('d', own))}
torch.save({'g_ema': mean, 'd': own, 'options': last['options']}, 'cats_mean.pt')
torch.save(half | {'options': last['options']}, 'demo/cats_train.pt')
PYTHON
python export_model.py --model cats_mean.pt --out demo/cats_demo.pt --keep_discriminator
python invert_photos.py --model demo/cats_demo.pt --train_encoder
