#!/usr/bin/env bash
# Both stages on the AFHQ cats (or other photos), small: 128x128 images from 32x32 rays. Two CPU cores take a night for
# it, one GPU half an hour. Interrupted at any time, the same command goes on where it was.
#     bash scripts/train_cats_small.sh cats.zip
# The argument (or PHOTOS) is a zip or a folder of photos; DATASET, EXPNAME, STEPS1 and STEPS2 may be set as well.
set -euo pipefail
cd "$(dirname "$0")/.."
photos=${1:-${PHOTOS:-}} dataset=${DATASET:-datasets/cats_small} name=${EXPNAME:-cats_small}

if [ -n "$photos" ]; then
    python prepare_data.py --out_path "$dataset" --size 64,128 "$photos"
fi
common=(--expname "$name" --dataset_path "$dataset" --azim 0.15 --continue_training
        --save_every 500 --keep_checkpoints 3 --sample_every 500 --val_n_sample 4 --num_workers 1)

# Stage 1: a quarter of the field's width and half its depth, a quarter of the discriminator's channels.
if [ ! -e "pretrained_renderer/${name}_vol_renderer.pt" ]; then
    python train_volume_renderer.py "${common[@]}" --size 64 --iter "${STEPS1:-30000}" \
        --renderer_spatial_output_dim 32 --N_samples 12 --width 64 --depth 4 --style_dim 64 \
        --discriminator_width 0.25 --batch 8 --chunk 8 --sphere_iters 1000
fi

# Stage 2: the renderer's sizes are read from stage 1's result.
python train_full_pipeline.py "${common[@]}" --size 128 --iter "${STEPS2:-10000}" \
    --channel_multiplier 1 --channel_max 64 --batch 4 --chunk 4
echo "Now: python generate_shapes_and_images.py --expname $name"
