#!/usr/bin/env bash
# Both stages on the AFHQ cats (or other photos), small. Two CPU cores take a night for it, one GPU half an hour.
# Interrupted at any time, the same command goes on where it was.
#     bash scripts/train_cats_small.sh cats.zip
# The argument (or PHOTOS) is a zip or a folder of photos; DATASET, EXPNAME, SIZE (of the images), RAYS (along a side of
# the thumbnails), STEPS1 and STEPS2 may be set as well.
#
# Measured: three hours of one to two busy cores (160,000 images in stage 1, 25,000 in stage 2) gave the first model in
# demo/, from whose field the present one began: heads with eyes under fur, about one seed in ten no cat, beta 0.006. At
# 64 pixels its patch distance (SWD x 1000) to the photos was 28.9. docs/notes/training.md shows how the run went.
set -euo pipefail
cd "$(dirname "$0")/.."
photos=${1:-${PHOTOS:-}} dataset=${DATASET:-datasets/cats_small} name=${EXPNAME:-cats_small} size=${SIZE:-64}

if [ -n "$photos" ]; then
    python prepare_data.py --out_path "$dataset" --size "$(printf '%s\n' 64 "$size" | sort -nu | paste -sd,)" "$photos"
fi
common=(--dataset_path "$dataset" --expname "$name" --azim 0.15 --continue_training --save_every 500
        --keep_checkpoints 3 --sample_every 500 --val_n_sample 6 --num_workers 1)

# Stage 1 with a quarter of the field's width and few rays. At this pace the surface would dissolve into fog, so it is
# held to a sphere as large as a head, lightly. So small pictures need little R1.
if [ ! -e "pretrained_renderer/${name}_vol_renderer.pt" ]; then
    python train_volume_renderer.py "${common[@]}" --size 64 --iter "${STEPS1:-10000}" \
        --renderer_spatial_output_dim "${RAYS:-16}" --width 64 --depth 3 --style_dim 64 --N_samples 12 \
        --discriminator_width 0.25 --batch 16 --chunk 16 --lr_g 1e-4 --lr_d 2e-4 --r1 3 \
        --sphere_iters 500 --sphere_radius 0.09 --sphere_lambda 1 --sphere_until 1000000 --initial_beta 0.03
fi

# Stage 2, whose decoder is drawn to the thumbnails. The renderer's sizes are read from stage 1's result.
python train_full_pipeline.py "${common[@]}" --size "$size" --iter "${STEPS2:-10000}" --channel_multiplier 1 \
    --channel_max 64 --batch 8 --chunk 8 --g_reg_every 0 --r1 0.5 --mixing 0 --thumbnail_lambda 5
echo "Now: python generate_shapes_and_images.py --expname $name"
