#!/usr/bin/env bash
# Both stages at 128x128 pixels on one GPU in eight minutes, from the field of a trained model. Interrupted at any time,
# the same command goes on where it was.
#     FEATURES=lite0_maps.pt bash scripts/train_one_gpu.sh cats.zip
# The argument (or PHOTOS) is a zip or a folder of photos. FEATURES is a TorchScript file of a feature network
# (benchmarks/lite_features.py writes one; without it torchvision downloads its own). START is the model to begin from.
# DATASET, EXPNAME, WIDTH (of the field), STEPS32, STEPS64 (stage 1 at so many rays) and STEPS_DECODER may be set as well.
#
# Measured on an H200, as part of scripts/make_demo.sh: 2.3 minutes at 32x32 rays (12,300 images), 3.8 minutes at 64x64
# (22,700), 1.3 minutes of stage 2 (10,800). What came of it: demo/README.md and docs/notes/training.md.
set -euo pipefail
cd "$(dirname "$0")/.."
photos=${1:-${PHOTOS:-}} dataset=${DATASET:-datasets/cats_128} name=${EXPNAME:-cats_128} start=${START:-demo/cats_demo.pt}

if [ -n "$photos" ]; then
    python prepare_data.py --out_path "$dataset" --size 128 "$photos"
fi
common=(--dataset_path "$dataset" --size 128 --azim 0.15 --batch 16 --chunk 16 --num_workers 4 --continue_training
        --discriminator projected ${FEATURES:+--features "$FEATURES"})

# Stage 1, first at few rays. A small R1 and a light weight keep the two discriminators in balance: with an R1 of 5 the
# own one gave up, and with a weight of 0.1 the surfaces were lost within a hundred steps.
field() { # EXPNAME RAYS STEPS START
    [ -e "pretrained_renderer/$1_vol_renderer.pt" ] || python train_volume_renderer.py "${common[@]}" --expname "$1" \
        --renderer_spatial_output_dim "$2" --iter "$3" --init_ckpt "$4" --width "${WIDTH:-128}" --N_samples 16 \
        --discriminator_width 0.25 --lr_g 1e-4 --r1 0.5 --r1_every 4 --projected_lambda 0.05 \
        --sphere_radius 0.09 --sphere_lambda 1 --sphere_fade
}
field "${name}_32" 32 "${STEPS32:-769}" "$start"
field "$name" 64 "${STEPS64:-1421}" "pretrained_renderer/${name}_32_vol_renderer.pt"

# Stage 2, whose decoder is drawn to the thumbnails.
python train_full_pipeline.py "${common[@]}" --expname "$name" --iter "${STEPS_DECODER:-678}" --channel_multiplier 1 \
    --channel_max 128 --g_reg_every 0 --thumbnail_lambda 10 --augment --lr 0.0015 --ema_rampup 0.05
echo "Now: python generate_shapes_and_images.py --expname $name"
