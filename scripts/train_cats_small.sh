#!/usr/bin/env bash
# A model of the AFHQ cats, or of other photos, on a small machine. Interrupted at any time, the same command goes on
# where it was.
#     bash scripts/train_cats_small.sh cats.zip
# The argument (or PHOTOS) is a zip or a folder of photos; DATASET, EXPNAME, SIZE (of the images), RAYS (along a side of
# the thumbnails), STEPS1 and STEPS2 may be set as well.
#
# With fewer than FEW photos (1,000) the bundled model is fine-tuned, which takes two CPU cores with AVX-512 an hour. With
# more, both stages begin from fresh weights, which takes two CPU cores a night and one GPU half an hour. FEW=0 always
# does that.
#
# Measured with 5,000 photos: three hours of one to two busy cores (160,000 images in stage 1, 25,000 in stage 2) gave the
# first model in demo/, from whose field the present one began: heads with eyes under fur, about one seed in ten no cat,
# beta 0.006. At 64 pixels its patch distance (SWD x 1000) to the photos was 28.9. docs/notes/training.md shows how both
# kinds of run went.
set -euo pipefail
PHOTOS=${1:-${PHOTOS:-}}
source "$(dirname "$0")/training.sh"
dataset=${DATASET:-datasets/cats_small} name=${EXPNAME:-cats_small} size=${SIZE:-64}
tuned_size=128  # of the bundled model's images

if [ -n "$PHOTOS" ]; then
    sizes=$(printf '%s\n' 64 "$size" $tuned_size | sort -nu | paste -sd,)
    python prepare_data.py --out_path "$dataset" --size "$sizes" "$PHOTOS"
fi
count=$(python - "$dataset" <<'PYTHON'
import sys

from dataset import open_images
from utils import UserError

try:
    print(len(open_images(sys.argv[1], 64)))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
PYTHON
)
common=(--dataset_path "$dataset" --expname "$name" --azim 0.15 --continue_training --keep_checkpoints 3
        --val_n_sample 6 --num_workers 1)

# Few photos say too little about heads for fresh weights: the decoder of a model that knows heads learns their looks.
if [ "$count" -lt "${FEW:-1000}" ]; then
    echo "$count photos are few: fine-tuning demo/cats_train.pt on them (FEW=0 begins from fresh weights instead)."
    python train_full_pipeline.py "${common[@]}" --size $tuned_size --iter "${STEPS2:-1000}" --save_every 100 \
        --sample_every 100 --init_ckpt demo/cats_train.pt --channel_multiplier 1 --channel_max 128 --batch 8 --chunk 8 \
        --augment --augment_images 20000 --ema_rampup 0.05 --thumbnail_lambda 1 --r1 1 --lr 0.001 --g_reg_every 0
    echo "Now: python generate_shapes_and_images.py --expname $name"
    exit
fi
common+=(--save_every 500 --sample_every 500)

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
