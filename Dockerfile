# One image for Dataflow's workers and launcher, for the worker pool beside Flink's TaskManagers, and for a shell.
#
#   make image                 DEVICE=cuda: workers with a card          make image DEVICE=cpu: workers without
#   docker run --rm IMAGE --worker_pool                                  a pool on port 50000
#   docker run --rm --entrypoint tessera-beam -v "$PWD:/data" IMAGE demo /data/demo-out
#
# Base images have no defaults: a tag moves, so they are given by digest (`make lock-image` writes deploy/image/images.lock,
# `make image` reads it). Not built yet: this file was written where no registry could be reached. Its RUN steps are carried
# out in a clean environment by tests/deploy/test_image.py, and its entry point with Beam's own boot program.
#
# Why the CUDA libraries come as wheels on a slim Python, not from an nvidia/cuda base: that base has no Python 3.11, and
# brings NCCL, NPP, cuSPARSE and cuSOLVER, which an encoder does not call. ONNX Runtime's own extras name exactly the seven
# libraries that it was built for, constraints.txt pins them like all else, the CPU image differs by one build argument, and
# what is tested here without Docker is what is in the image. transforms/encode.py loads them before its first session.
#
# Size budget, unpacked (du, 2026-11-21, with byte code). What changes seldom lies below what changes often, so that workers
# fetch 10 MB for a new release and not 4 GB:
#   python slim   130 MB   the base image
#   libexpat1       1 MB
#   /opt/apache    25 MB   boot, and the licences of what it links
#   launcher       20 MB   python_template_launcher
#   venv        3,350 MB   cuda: 1,150 CUDA, 850 cuDNN, 340 ONNX Runtime, 1,010 all else
#               1,080 MB   cpu
#   our wheel      10 MB   with the demo's model
ARG PYTHON_IMAGE
ARG BEAM_IMAGE
ARG LAUNCHER_IMAGE

# apache/beam_python3.11_sdk:2.77.0, for /opt/apache/beam: the boot program that every runner starts.
FROM ${BEAM_IMAGE} AS sdk

# gcr.io/dataflow-templates-base/python311-template-launcher-base, for the program that starts a flex template.
FROM ${LAUNCHER_IMAGE} AS launcher

# python:3.11-slim-bookworm. The minor is that of the machine that submits: what is pickled here is read there.
FROM ${PYTHON_IMAGE} AS builder
ARG DEVICE=cuda
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
RUN python -m pip install --no-cache-dir --disable-pip-version-check uv==0.13.8
COPY pyproject.toml constraints.txt README.md LICENSE ./
# --seed: boot asks `python -m pip show apache-beam` and gives up where there is no pip (piputil.go, release 2.77.0).
# The card's build of ONNX Runtime is held at the release of the CPU's, which the tests ran on.
RUN case "${DEVICE}" in cuda) extra=gpu ;; cpu) extra=cpu ;; *) echo "DEVICE=${DEVICE}: cuda or cpu" >&2; exit 2 ;; esac \
 && sed -n 's/^onnxruntime==/onnxruntime-gpu==/p' constraints.txt > gpu-constraints.txt \
 && uv venv --seed --python python /opt/tessera \
 && uv pip install --no-cache --compile-bytecode --python /opt/tessera/bin/python -c constraints.txt -c gpu-constraints.txt \
      -r pyproject.toml --extra "${extra}" --extra gcp --extra dataflow --extra s3
COPY model model
COPY pipeline pipeline
COPY transforms transforms
# Our own files in a folder apart: a layer of their own in the image.
RUN uv build --wheel --out-dir dist . \
 && uv pip install --no-cache --no-deps --compile-bytecode --python /opt/tessera/bin/python --prefix /opt/own dist/*.whl

FROM ${PYTHON_IMAGE} AS runtime
ARG RELEASE
ARG REVISION=""
ARG DEVICE=cuda
LABEL org.opencontainers.image.title="tessera-beam" \
      org.opencontainers.image.description="TESSERA pixel embeddings on Apache Beam: worker, pool and launcher" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${RELEASE}" \
      org.opencontainers.image.revision="${REVISION}" \
      beam.tessera.device="${DEVICE}"

# libexpat1: rasterio's wheels take it from the system. GDAL's and PROJ's data lie inside the wheels.
# The user has a line in /etc/passwd, for boot ends in a panic where its user has none (download.go of 2.77.0 looks for a
# home before it looks at its arguments): pods that run as another number fail for that reason.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libexpat1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin tessera

COPY --from=sdk /opt/apache/beam /opt/apache/beam
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY --from=builder /opt/tessera /opt/tessera
COPY deploy/dataflow/template_main.py /opt/tessera-template/main.py
COPY --from=builder /opt/own /opt/tessera

# PATH: boot and its pool start the literal `python`.
# RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT: else boot makes a venv under /opt/apache for each worker, as root; nothing is
#   staged that would have to be kept apart.
# LD_LIBRARY_PATH: where Dataflow mounts the driver. NVIDIA_DRIVER_CAPABILITIES: what Kubernetes and Docker mount of it;
#   which card is theirs to say (no NVIDIA_VISIBLE_DEVICES=all, by which pods see cards that they were not given).
# HOME: Beam and Google's libraries want one that can be written to.
ENV PATH=/opt/tessera/bin:$PATH \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 \
    PYTHONUNBUFFERED=1 \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/tmp \
    FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/tessera-template/main.py

# No HEALTHCHECK: Dataflow and Kubernetes do not read it; they watch the worker's own connection, and the pool's port
# (deploy/flink). No tini: boot forwards signals to its workers and waits for them; what a killed worker leaves to
# process 1 is reaped by the pod (shareProcessNamespace in deploy/flink), and on Dataflow ends with the job.
# WORKDIR: boot writes pipeline_options.json where it is started, and staged files under /tmp.
WORKDIR /tmp
ENTRYPOINT ["/opt/apache/beam/boot"]

# Dataflow starts its containers with folders that belong to root, the workers' /var/opt/google and the launcher's
# /var/log/dataflow, and another user ends there with `permission denied` (pangeo-data/pangeo-docker-images#360,
# GoogleCloudPlatform/python-docs-samples#13213). The same layers, with that user.
FROM runtime AS dataflow
# hadolint ignore=DL3002
USER 0:0

# What `docker build` makes without --target: for pools, pods and shells.
FROM runtime AS pool
USER 10001:10001
