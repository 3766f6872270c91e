# syntax=docker/dockerfile:1

# For a GPU host:   docker build -t specvlm .
# For a CPU:        docker build -t specvlm:cpu --build-arg BASE=ubuntu:24.04 --build-arg TORCH_INDEX=… .
#
# BASE         an Ubuntu 24.04. The `base` flavour of CUDA is enough: it lets the driver in and checks its version;
#              torch brings the CUDA libraries that it was built with.
# TORCH_INDEX  where pip also looks for torch. Empty: the build on the package index, which is for CUDA and runs on
#              a CPU too. PyTorch's index of CPU wheels (see its installation page) makes an image some GB smaller.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

# What runs: Python, and a compiler, which is used here at the first start. On a CPU it makes our kernels for the
# processor that it finds (shipping a library would mean one for every instruction set, or the slowest of them);
# with CUDA, Triton makes the stub that launches its kernels and needs Python's headers for it.
# hadolint ignore=DL3006
FROM ${BASE} AS base
# Versions are those of the release: a pinned one vanishes from Ubuntu's archive with the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ python3 python3-dev \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=
WORKDIR /build
# Without our packages beside it, the project is nothing but its dependencies: a layer that stays while code changes.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    touch README.md \
    && python3 -m venv /opt/specvlm \
    && /opt/specvlm/bin/pip install --only-binary :all: -c constraints.txt setuptools \
    && /opt/specvlm/bin/pip install --only-binary :all: -c constraints.txt --no-build-isolation \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} .
COPY . .
RUN /opt/specvlm/bin/pip install --no-cache-dir --no-deps --no-build-isolation --force-reinstall .

FROM base
RUN groupadd --gid 10001 specvlm \
    && useradd --uid 10001 --gid 10001 --create-home specvlm \
    && install -d -o specvlm -g specvlm -m 700 /cache
COPY --from=build /opt/specvlm /opt/specvlm
COPY docker/healthcheck.py /opt/specvlm/healthcheck.py
ENV PATH=/opt/specvlm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    TRITON_CACHE_DIR=/cache/triton \
    SPECVLM_HOST=0.0.0.0 \
    SPECVLM_PORT=8000
# Models from the hub, the demo model, compiled kernels, measured costs. Mount a volume here to keep them.
WORKDIR /cache
USER 10001:10001
EXPOSE 8000
# Asks the port that SPECVLM_PORT names: publish another one with -p, rather than --port inside.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "/opt/specvlm/healthcheck.py"]
ENTRYPOINT ["specvlm"]
CMD ["serve"]
