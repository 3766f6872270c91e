# syntax=docker/dockerfile:1

# For a GPU host:   docker build -t specvlm .
# For a CPU:        docker build -t specvlm:cpu --build-arg BASE=ubuntu:24.04 --build-arg TORCH_INDEX=… .
#
# BASE         an Ubuntu 24.04 image. CUDA's `base` flavour is enough: it makes the driver available and checks its
#              version; torch comes with the CUDA libraries that it was built with.
# TORCH_INDEX  an additional index for torch. If empty, torch comes from the package index: a CUDA build, which also
#              runs on a CPU. PyTorch's index of CPU wheels (see its installation page) makes an image some GB smaller.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

# The runtime: Python, and a compiler, which is used at the first start. On a CPU, it compiles our kernels for the
# processor at hand (a prebuilt library would have to exist for every instruction set, or use the slowest of them).
# With CUDA, Triton compiles the stub that launches its kernels, and needs Python's headers for that.
# hadolint ignore=DL3006
FROM ${BASE} AS base
# Versions are not pinned: a pinned version disappears from Ubuntu's archive with the next security update.
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
# Without our packages, this installs only the project's dependencies: a layer that stays cached when code changes.
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
# Reads SPECVLM_PORT and SPECVLM_SSL_CERTFILE: to use another port, map it with -p instead of passing --port; for
# TLS, set the variables instead of passing the flags.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "/opt/specvlm/healthcheck.py"]
ENTRYPOINT ["specvlm"]
CMD ["serve"]
