# syntax=docker/dockerfile:1
#   docker build --target cpu -t mmevit .
#   docker build --target cuda -t mmevit:cuda .
#   docker run --rm mmevit                                 what is installed, and whether it works
#   docker run --rm --gpus all --shm-size 8g -v /data/coco:/opt/mmevit/data/coco mmevit:cuda \
#       python tools/train.py configs/retinanet_evit_m4.py
# Both hold the versions of requirements/constraints.txt, which `make env` installs. A change of
# code rebuilds the last layer only.

# Debian 12, whose compiler and C library CUDA 13 knows.
FROM python:3.11-slim-bookworm AS base
# For mmcv's operators, and at run time for torch.compile.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 mmevit
ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH
WORKDIR /opt/mmevit

# What `make env` reads. It notes where the package is, and needs nothing of what is in it.
FROM base AS requirements
COPY Makefile setup.py pyproject.toml ./
COPY requirements requirements
COPY tools/dev/check_machine.py tools/dev/
COPY mmevit/version.py mmevit/
RUN touch README.md mmevit/__init__.py
# Set them to install from elsewhere.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
# A wheel of mmcv that was compiled for one of the targets does not serve the other.
ENV PIP_NO_CACHE_DIR=1

FROM requirements AS env-cpu
RUN make env

# The CUDA of the torch in requirements/constraints.txt.
FROM nvidia/cuda:13.0.2-devel-ubuntu22.04 AS toolkit

FROM requirements AS env-cuda
COPY --from=toolkit /usr/local/cuda-13.0 /usr/local/cuda
ENV CUDA_HOME=/usr/local/cuda
# Fewer of them compile faster. These are the ones that torch is built for.
ARG TORCH_CUDA_ARCH_LIST="7.5 8.0 8.6 9.0 10.0 12.0+PTX"
# There is no GPU while an image is built.
ARG FORCE_CUDA=1
# Compilers at a time, each of which takes memory; without it mmcv chooses.
ARG MAX_JOBS
RUN make env

# The libraries of CUDA that networks run with come with torch, so the toolkit stays behind.
FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=env-cuda /opt/venv /opt/venv
RUN chown 1000:1000 .
USER 1000
COPY --chown=1000:1000 . .
CMD ["python", "-m", "mmevit"]

# The last one, which `docker build` makes unless told otherwise.
FROM base AS cpu
COPY --from=env-cpu /opt/venv /opt/venv
RUN chown 1000:1000 .
USER 1000
COPY --chown=1000:1000 . .
CMD ["python", "-m", "mmevit"]
