# syntax=docker/dockerfile:1
#   docker build --target cpu -t mmevit .
#   docker build --target cuda -t mmevit:cuda .
#   docker run --rm mmevit                                 self check
#   docker run --rm --gpus all --shm-size 8g -v /data/coco:/opt/mmevit/data/coco mmevit:cuda \
#       python tools/train.py configs/retinanet_evit_m4.py
# Both have the versions of requirements/constraints.txt, which `make env` installs. A change of
# code rebuilds only the last layers.

# Debian 12, as CUDA 13 supports its compiler and C library.
FROM python:3.11-slim-bookworm AS base
# To compile mmcv's operators, and for torch.compile.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 mmevit
ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH
WORKDIR /opt/mmevit

# The files that `make env` reads. The editable installation needs none of the code.
FROM base AS requirements
COPY LICENSE Makefile setup.py pyproject.toml ./
COPY requirements requirements
COPY tools/dev/check_machine.py tools/dev/precompile_headers.py tools/dev/
COPY mmevit/version.py mmevit/
RUN touch README.md mmevit/__init__.py
# To install from another package index.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
# Do not reuse a wheel of mmcv that was compiled for the other target.
ENV PIP_NO_CACHE_DIR=1

FROM requirements AS env-cpu
RUN make env

# The CUDA of the torch in requirements/constraints.txt.
FROM nvidia/cuda:13.0.2-devel-ubuntu22.04 AS toolkit

FROM requirements AS env-cuda
COPY --from=toolkit /usr/local/cuda-13.0 /usr/local/cuda
ENV CUDA_HOME=/usr/local/cuda
# The architectures that torch is built for. Fewer compile faster.
ARG TORCH_CUDA_ARCH_LIST="7.5 8.0 8.6 9.0 10.0 12.0+PTX"
# There is no GPU while an image is built.
ARG FORCE_CUDA=1
# Number of parallel compiler processes; each needs memory. By default mmcv selects it.
ARG MAX_JOBS
RUN make env

# torch brings the CUDA libraries needed at run time, so the toolkit is left out.
FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=env-cuda /opt/venv /opt/venv
RUN chown 1000:1000 .
USER 1000
COPY --chown=1000:1000 . .
RUN python setup.py --quiet --version
CMD ["python", "-m", "mmevit"]

# The last target, the default of `docker build`.
FROM base AS cpu
COPY --from=env-cpu /opt/venv /opt/venv
RUN chown 1000:1000 .
USER 1000
COPY --chown=1000:1000 . .
RUN python setup.py --quiet --version
CMD ["python", "-m", "mmevit"]
