# An image of the program:
#   docker build -t tessera-beam .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" tessera-beam demo demo-out
# EXTRA=gpu takes the CUDA build of ONNX Runtime with NVIDIA's libraries; run that image with `--gpus all` and a driver
# for CUDA 13. Not proven yet: this file was written where no image could be built, so neither build has been seen. It is
# not a Beam worker image either.
FROM python:3.11-slim

# rasterio's wheels take this library from the system, and slim images come without it.
RUN apt-get update && apt-get install -y --no-install-recommends libexpat1 && rm -rf /var/lib/apt/lists/*

ARG EXTRA=cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY model model
COPY pipeline pipeline
COPY transforms transforms
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRA}]" && rm -rf /src/*

# Beam wants a home that can be written to, whoever runs the image.
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["tessera-beam"]
