#!/usr/bin/env bash
# Compares our pictures and meshes with those of the original program, on an official model. You need a checkout of the
# original, and a Python in which it runs (it asks for CUDA and PyTorch3D):
#     ORIGINAL_PYTHON=/path/to/its/python bash scripts/check_parity.sh /path/to/its/checkout
# MODEL=afhq512x512 takes the animals instead of ffhq1024x1024, IDENTITIES=8 makes more than 4. Further arguments, such as
# --device cuda, go to our command. With a GPU let both run on it: random numbers of CPUs and GPUs differ.
# It downloads the model (200 MB), makes the same identities with both programs, and prints for each file how far they are
# apart. docs/parity.md says what to expect. Results stay in evaluations/parity.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
original=$(realpath "$1"); shift
[ -f "$original/generate_shapes_and_images.py" ] \
    || { echo "$original holds no generate_shapes_and_images.py; give the folder of the original's checkout." >&2; exit 2; }
source "$(dirname "$0")/environment.sh"
install requirements.txt
model=${MODEL:-ffhq1024x1024}
results="$PWD/evaluations/parity"
flags=(--expname "$model" --identities "${IDENTITIES:-4}" --num_views_per_id 1)
[ -f "full_models/$model.pt" ] || python download_models.py --only "$model"
rm -rf "$results"

# The original looks for the model in its own folder, and needs to be told its size.
mkdir -p "$original/full_models"
[ -e "$original/full_models/$model.pt" ] || ln -s "$PWD/full_models/$model.pt" "$original/full_models/$model.pt"
size=${SIZE:-$(sed 's/.*x//' <<< "$model")}
(cd "$original" && "${ORIGINAL_PYTHON:-python}" generate_shapes_and_images.py "${flags[@]}" --size "$size" \
    --results_dir "$results/original")
python generate_shapes_and_images.py "${flags[@]}" --results_dir "$results/ours" "$@"
python benchmarks/compare_results.py "$results/original" "$results/ours"
