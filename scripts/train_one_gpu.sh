#!/usr/bin/env bash
# Both stages at 128x128 pixels on one GPU in a quarter of an hour, from the field of a trained model. Interrupted at any
# time, the same command goes on where it was.
#     FEATURES=lite0_maps.pt bash scripts/train_one_gpu.sh cats.zip
# The argument (or PHOTOS) is a zip or a folder of photos. FEATURES is a TorchScript file of a feature network
# (benchmarks/lite_features.py writes one; without it torchvision downloads its own). START is the model to begin from.
# DECODER is a model whose decoder is to go on. DATASET, EXPNAME, WIDTH (of the field), STEPS32, STEPS64 (stage 1 at so
# many rays) and STEPS_DECODER may be set as well.
#
# Measured on an H200, as the larger part of scripts/make_demo.sh, with a DECODER: 3.6 minutes at 32x32 rays (145,000
# images, 770 a second), 9.4 minutes at 64x64 (180,000, 325 a second), 2.4 minutes of stage 2 (45,000, 313 a second).
# 37 GB of the GPU at most. What came of it: demo/README.md and docs/notes/training.md.
set -euo pipefail
PHOTOS=${1:-${PHOTOS:-}}
source "$(dirname "$0")/training.sh"
dataset=${DATASET:-datasets/cats_128} name=${EXPNAME:-cats_128} start=${START:-demo/cats_demo.pt}
export TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1  # PyTorch's own switch for quicker matrix products with fewer digits

if [ -n "$PHOTOS" ]; then
    python prepare_data.py --out_path "$dataset" --size 128 "$PHOTOS"
fi
common=(--dataset_path "$dataset" --size 128 --azim 0.15 --num_workers 12 --continue_training --ema_rampup 0.2
        ${FEATURES:+--features "$FEATURES"})

# Stage 1, first at few rays. A small R1 keeps the discriminators in balance, the sphere and the eikonal loss hold the
# surface against them, and the last two losses keep surfaces off the far plane and faces from becoming hollow.
field() { # EXPNAME RAYS STEPS START BATCH PROJECTED_LAMBDA LR_G LR_D
    [ -e "pretrained_renderer/$1_vol_renderer.pt" ] || python train_volume_renderer.py "${common[@]}" --expname "$1" \
        --renderer_spatial_output_dim "$2" --iter "$3" --init_ckpt "$4" --batch "$5" --chunk "$5" \
        --projected_lambda "$6" --lr_g "$7" --lr_d "$8" --width "${WIDTH:-128}" --N_samples 16 \
        --discriminator projected --discriminator_width 0.5 --r1 0.5 --r1_every 4 --eikonal_lambda 0.25 \
        --sphere_radius 0.09 --sphere_lambda 1 --sphere_until 1000000 --far_lambda 20 --relief_lambda 2
}
field "${name}_32" 32 "${STEPS32:-1134}" "$start" 128 0.2 1.4e-4 4e-4
field "$name" 64 "${STEPS64:-2805}" "pretrained_renderer/${name}_32_vol_renderer.pt" 64 0.15 1e-4 3e-4

# Stage 2 with both discriminators: the projected one knows what eyes look like, StyleGAN2's sees the grain of the fur.
# The decoder is drawn to the thumbnails. It begins anew, which takes longer, or as the one of DECODER.
steps=${STEPS_DECODER:-${DECODER:+700}}
python train_full_pipeline.py "${common[@]}" --expname "$name" --iter "${steps:-4000}" --batch 64 --chunk 64 \
    --precision bf16 --channel_multiplier 1 --channel_max 128 --discriminator both --projected_lambda 0.5 --r1 1 \
    --g_reg_every 0 --thumbnail_lambda 2 --augment --augment_images 300000 --lr 0.002 --dense \
    ${DECODER:+--renderer_ckpt "pretrained_renderer/${name}_vol_renderer.pt" --init_ckpt "$DECODER"}
echo "Now: python generate_shapes_and_images.py --expname $name"
