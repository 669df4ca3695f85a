#!/usr/bin/env bash
# How the model in demo/ is made: the small training on the AFHQ cats, then half precision.
#     bash scripts/make_demo.sh cats.zip
set -euo pipefail
cd "$(dirname "$0")/.."
EXPNAME=cats_small bash scripts/train_cats_small.sh "$@"
python export_model.py --expname cats_small --out demo/cats_demo.pt
