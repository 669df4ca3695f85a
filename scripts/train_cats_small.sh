#!/usr/bin/env bash
# Both stages on the AFHQ cats (or other photos), small. Two CPU cores take a night for it, one GPU half an hour.
# Interrupted at any time, the same command goes on where it was.
#     bash scripts/train_cats_small.sh cats.zip
# The argument (or PHOTOS) is a zip or a folder of photos; DATASET, EXPNAME, SIZE (of the images), STEPS16, STEPS32 and
# STEPS2 may be set as well. docs/training.md shows what these settings gave.
set -euo pipefail
cd "$(dirname "$0")/.."
photos=${1:-${PHOTOS:-}} dataset=${DATASET:-datasets/cats_small} name=${EXPNAME:-cats_small} size=${SIZE:-128}

if [ -n "$photos" ]; then
    python prepare_data.py --out_path "$dataset" --size "$(printf '%s\n' 64 "$size" | sort -nu | paste -sd,)" "$photos"
fi
common=(--dataset_path "$dataset" --azim 0.15 --continue_training --save_every 500 --keep_checkpoints 3
        --sample_every 500 --val_n_sample 6 --num_workers 1)

# Stage 1 with a quarter of the field's width, first at 16x16 rays, where a step is cheap, then at 32x32. At this pace
# the surface would dissolve into fog, so it is held to a sphere as large as a head, lightly.
renderer() {
    python train_volume_renderer.py "${common[@]}" --size 64 --width 64 --depth 3 --style_dim 64 --N_samples 12 \
        --discriminator_width 0.25 --batch 16 --chunk 8 --lr_g 1e-4 --lr_d 2e-4 \
        --sphere_iters 500 --sphere_radius 0.09 --sphere_lambda 1 --sphere_until 1000000 --initial_beta 0.03 "$@"
}
for run in "${name}_16" "$name"; do
    if [ ! -e "pretrained_renderer/${run}_vol_renderer.pt" ]; then
        if [ "$run" = "$name" ]; then
            renderer --expname "$run" --iter "${STEPS32:-8000}" --renderer_spatial_output_dim 32 \
                --init_ckpt "pretrained_renderer/${name}_16_vol_renderer.pt"
        else
            renderer --expname "$run" --iter "${STEPS16:-8000}" --renderer_spatial_output_dim 16
        fi
    fi
done

# Stage 2: the renderer's sizes are read from stage 1's result.
python train_full_pipeline.py "${common[@]}" --expname "$name" --size "$size" --iter "${STEPS2:-10000}" \
    --channel_multiplier 1 --channel_max 64 --batch 8 --chunk 8 --g_reg_every 0
echo "Now: python generate_shapes_and_images.py --expname $name"
