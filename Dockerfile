# StyleSDF with the model in demo/. For CPUs, and for NVIDIA GPUs:
#     docker build -t stylesdf .
#     docker build -t stylesdf-cuda --build-arg DEVICE=cuda .
# The demo, its results in ./evaluations of the host:
#     mkdir -p evaluations
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/evaluations:/stylesdf/evaluations" stylesdf
# with --gpus all before the name of the second. Any other command follows the name: python render_video.py --help
FROM python:3.12-slim-bookworm

# cpu or cuda: which of PyTorch's builds is installed. There is no compiler inside: on a GPU plain PyTorch does the work
# of the kernels in op/, and says so.
ARG DEVICE=cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV VIRTUAL_ENV=/environment PATH=/environment/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /stylesdf

# What changes rarely comes first.
COPY requirements.txt ./
COPY scripts/environment.sh scripts/
RUN set -eu; \
    case "$DEVICE" in cpu | cuda) ;; *) echo "DEVICE must be cpu or cuda, not $DEVICE" >&2; exit 1 ;; esac; \
    python -m venv "$VIRTUAL_ENV"; \
    . scripts/environment.sh; \
    if [ "$DEVICE" = cpu ]; then \
        grep '^torch' requirements.txt > cpu.txt; \
        pip install --index-url https://download.pytorch.org/whl/cpu -r cpu.txt; \
        rm cpu.txt; \
    fi; \
    install requirements.txt

COPY . .
USER 65534
CMD ["bash", "scripts/demo.sh"]
