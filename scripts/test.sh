#!/usr/bin/env bash
# Runs the test suite; arguments go to pytest. Without arguments all tests run in as many processes as there are cores,
# four at most since each can hold 2 GB, with one thread each. Without an active environment it makes .venv and installs
# into it (about 5 GB with PyTorch's CUDA build). Where there is no Chromium the page's browser tests skip; CI installs it if it can.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install requirements.txt requirements-test.txt
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; then
    { apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 \
        || echo 'Chromium could not be installed: browser tests will skip.'
fi
if [ "${CI:-}" = true ] && command -v npm >/dev/null && [ ! -d .onnxruntime-web ]; then
    npm install --silent --no-audit --no-fund --prefix .onnxruntime-web 'onnxruntime-web@^1.20' >/dev/null 2>&1 \
        || echo 'onnxruntime-web could not be installed: tests of the page that runs a model will skip.'
fi
if [ $# = 0 ]; then
    cores=$(getconf _NPROCESSORS_ONLN || echo 2)
    set -- --numprocesses $((cores < 4 ? cores : 4)) --dist loadfile --no-loadscope-reorder
    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
fi
exec python -m pytest "$@"
