#!/usr/bin/env bash
# How the model in demo/ was made from the previous one: an hour and three quarters of a CPU core, then a quarter of an
# hour on an H200, then an hour and a half of a core. demo/README.md says what it is like, docs/notes/training.md how the
# training went.
#     FEATURES=lite0_maps.pt bash scripts/make_demo.sh cats.zip
# cats.zip held the first 5,000 of the 5,069 photos; FEATURES is the file of
# `python benchmarks/lite_features.py maps lite0 --out lite0_maps.pt`. Without it torchvision's network is taken.
set -euo pipefail
PHOTOS=${1:-${PHOTOS:-}}
source "$(dirname "$0")/training.sh"

# The previous model (git show 6aac91f:scripts/make_demo.sh is how that was made).
git show 6aac91f:demo/cats_demo.pt > before.pt
git show 6aac91f:demo/cats_train.pt > before_train.pt
python prepare_data.py --out_path datasets/cats_128 --size 128 "$PHOTOS"

# Half of its faces were hollow: first a field without hollow faces, if less clear ones.
[ -e turned.pt ] || python -m training.turn_hollow_faces before.pt --out turned.pt --steps 5000

# Both stages. The decoder goes on from the previous one, and so does its discriminator of stage 2. (When this was run,
# the discriminators of the previous model's stage 1 and the projected one of its stage 2 went on too. They are larger
# than the rest and not in this repository. Stage 2 ran for longer; its checkpoint of step 700 was the best.)
DATASET=datasets/cats_128 EXPNAME=cats_128 START=turned.pt DECODER=before_train.pt bash scripts/train_one_gpu.sh

# 30 small steps from the average of stage 1's weights, on a CPU. They do nothing but take the scraps of surface away that
# were left at the far plane: the weight of that loss is high, and the learning rate low.
python - <<'PYTHON'
import torch

field = torch.load('pretrained_renderer/cats_128_vol_renderer.pt', weights_only=True)
torch.save({'g_ema': field['g_ema'], 'options': field['options']}, 'field.pt')
PYTHON
python train_volume_renderer.py --dataset_path datasets/cats_128 --size 128 --azim 0.15 --batch 8 --chunk 8 \
    --expname cats_clear --init_ckpt field.pt --iter 30 --renderer_spatial_output_dim 32 --width 128 --N_samples 24 \
    --discriminator_width 0.5 --r1 0.5 --r1_every 4 --eikonal_lambda 0.25 --sphere_radius 0.09 --sphere_lambda 1 \
    --sphere_until 1000000 --far_lambda 1000 --relief_lambda 2 --lr_g 4e-6 --ema_rampup 0.05 --num_workers 1 \
    --device cpu

# Ears that hover before the head and bodies cut off from it are joined to it. (When this was run, it began with
# weights that had been rounded to half precision, and specks had a quarter of today's weight.)
[ -e joined.pt ] || python -m training.join_loose_pieces pretrained_renderer/cats_clear_vol_renderer.pt \
    --out joined.pt --steps 1200

# The decoder above that field, and then its pictures with the tones of the photos. (When this was run, it began with
# weights that had been rounded to half precision.)
python - <<'PYTHON'
import torch

from checkpoint import without_projected

joined = torch.load('joined.pt', weights_only=True)['g_ema']
full = torch.load('full_models/cats_128.pt', weights_only=True)
torch.save({'g_ema': full['g_ema'] | joined, 'd': without_projected(full['d']), 'options': full['options']}, 'dull.pt')
PYTHON
[ -e toned.pt ] || python -m training.match_tones dull.pt --dataset_path datasets/cats_128 --out toned.pt --steps 800

# The file for fine-tuning. Its discriminator is StyleGAN2's alone, which needs no feature network.
python - <<'PYTHON'
import torch

toned = torch.load('toned.pt', weights_only=True)
half = {part: {name: tensor.half() for name, tensor in state.items()}
        for part, state in (('g', toned['g_ema']), ('g_ema', toned['g_ema']), ('d', toned['d']))}
torch.save(half | {'options': toned['options']}, 'demo/cats_train.pt')
PYTHON
python export_model.py --model toned.pt --out demo/cats_demo.pt --keep_discriminator
python invert_photos.py --model demo/cats_demo.pt --train_encoder --encoder_steps 6000
