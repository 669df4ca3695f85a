#!/usr/bin/env bash
# Runs the test suite; arguments go to pytest. Without an active environment it makes .venv and installs into it
# what requirements.txt asks for (about 5 GB with PyTorch's CUDA build), once for each version of that file.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    source .venv/bin/activate
fi
stamp="$(python -c 'import sys; print(sys.prefix)')/.stylesdf-requirements"
if ! cmp -s requirements.txt "$stamp"; then
    python -m pip install --quiet -r requirements.txt pytest
    cp requirements.txt "$stamp"
fi
exec python -m pytest "$@"
