#!/usr/bin/env bash
# Both stages at 128x128 pixels on one GPU in a quarter of an hour, from the field of a trained model. Interrupted at any
# time, the same command goes on where it was.
#     FEATURES=lite0_maps.pt bash scripts/train_one_gpu.sh cats.zip
# The argument (or PHOTOS) is a zip or a folder of photos. FEATURES is a TorchScript file of a feature network
# (benchmarks/lite_features.py writes one; without it torchvision downloads its own). START is the model to begin from.
# DECODER is a model whose decoder is to go on. DATASET, EXPNAME, WIDTH (of the field), STEPS32, STEPS64 (stage 1 at so
# many rays) and STEPS_DECODER may be set as well.
#
# Measured on an H200, as the larger part of scripts/make_demo.sh: 2.5 minutes at 32x32 rays (37,000 images), 5.2 minutes
# at 64x64 (70,000), 6.3 minutes of stage 2 (69,000). What came of it: demo/README.md and docs/notes/training.md.
set -euo pipefail
cd "$(dirname "$0")/.."
photos=${1:-${PHOTOS:-}} dataset=${DATASET:-datasets/cats_128} name=${EXPNAME:-cats_128} start=${START:-demo/cats_demo.pt}
export TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1  # PyTorch's own switch for quicker matrix products with fewer digits

if [ -n "$photos" ]; then
    python prepare_data.py --out_path "$dataset" --size 128 "$photos"
fi
common=(--dataset_path "$dataset" --size 128 --azim 0.15 --batch 32 --chunk 32 --num_workers 8 --continue_training
        ${FEATURES:+--features "$FEATURES"})

# Stage 1, first at few rays. A small R1 and small weights of the projected discriminator keep the two in balance. A
# stronger discriminator of the paper's kind (--lr_d 5e-4) made the surfaces rough.
field() { # EXPNAME RAYS STEPS START
    [ -e "pretrained_renderer/$1_vol_renderer.pt" ] || python train_volume_renderer.py "${common[@]}" --expname "$1" \
        --renderer_spatial_output_dim "$2" --iter "$3" --init_ckpt "$4" --width "${WIDTH:-128}" --N_samples 16 \
        --discriminator projected --projected_lambda 0.1 --discriminator_width 0.5 --lr_g 1e-4 --lr_d 2e-4 --r1 0.5 \
        --r1_every 4 --eikonal_lambda 0.25 --sphere_radius 0.09 --sphere_lambda 1 --sphere_until 1000000 --ema_rampup 0.1
}
field "${name}_32" 32 "${STEPS32:-1157}" "$start"
field "$name" 64 "${STEPS64:-2193}" "pretrained_renderer/${name}_32_vol_renderer.pt"

# Stage 2 with both discriminators: the projected one knows what eyes look like, StyleGAN2's sees the grain of the fur.
# The decoder is drawn to the thumbnails. It begins anew, or as the one of DECODER.
python train_full_pipeline.py "${common[@]}" --expname "$name" --iter "${STEPS_DECODER:-2149}" --channel_multiplier 1 \
    --channel_max 128 --discriminator both --projected_lambda 0.5 --r1 1 --g_reg_every 0 --thumbnail_lambda 10 --augment \
    --augment_images 300000 --lr 0.0015 --ema_rampup 0.05 --dense \
    ${DECODER:+--renderer_ckpt "pretrained_renderer/${name}_vol_renderer.pt" --init_ckpt "$DECODER"}
echo "Now: python generate_shapes_and_images.py --expname $name"
