#!/usr/bin/env bash
# How the model in demo/ is made: both small trainings on the AFHQ cats at 64x64, then half precision.
#     bash scripts/make_demo.sh cats.zip
set -euo pipefail
cd "$(dirname "$0")/.."
EXPNAME=cats_small SIZE=64 STEPS16=${STEPS16:-8500} STEPS32=${STEPS32:-4000} STEPS2=${STEPS2:-5000} \
    bash scripts/train_cats_small.sh "$@"
python export_model.py --expname cats_small --out demo/cats_demo.pt
