#!/usr/bin/env bash
# Shows what StyleSDF does: eight cats with their surfaces and a short video, from the model in demo/, on one page.
#     bash scripts/demo.sh
# Without an active environment it makes .venv and installs into it (about 5 GB with PyTorch's CUDA build); then it takes
# half a minute on two CPU cores with AVX-512. SEEDS, VIDEO_SEED, FRAMES and EXPNAME may be set; further arguments go to
# both commands.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install requirements.txt
name=${EXPNAME:-cats_demo}
python generate_shapes_and_images.py --expname "$name" --seeds "${SEEDS:-3,5,8,13,17,18,19,20}" "$@"
python render_video.py --expname "$name" --seeds "${VIDEO_SEED:-18}" --frames "${FRAMES:-40}" --fps 20 --page "$@"
echo
echo "Open this page in a browser: $PWD/evaluations/$name/final_model/index.html"
