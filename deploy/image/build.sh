#!/usr/bin/env bash
# Builds the image from deploy/image/images.lock, tagged as the program wants it (pipeline/engines/images.py).
#
#   deploy/image/build.sh               DEVICE=cuda: tessera-beam:<release>-beam<V>-py<XY>-cuda, and -cuda-dataflow
#   DEVICE=cpu deploy/image/build.sh    for workers without a card
#   IMAGE=HOST/PROJECT/tessera-beam     the name in front of the tag, for a registry
set -euo pipefail
cd "$(dirname "$0")/../.."

lock=deploy/image/images.lock
[ -f "$lock" ] || { echo "$lock is missing: make lock-image writes it, where a registry can be reached" >&2; exit 2; }
device=${DEVICE:-cuda}
image=${IMAGE:-tessera-beam}
arguments=()
for name in PYTHON_IMAGE BEAM_IMAGE LAUNCHER_IMAGE; do
  value=$(sed -n "s/^$name=//p" "$lock")
  [[ $value == *@sha256:* ]] || { echo "$lock: $name has no digest: make lock-image" >&2; exit 2; }
  arguments+=(--build-arg "$name=$value")
done
release=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -1)
beam=$(sed -n 's/^apache-beam==//p' constraints.txt)
python=$(sed -n 's/^PYTHON_IMAGE=python:\([0-9]*\)\.\([0-9]*\).*/\1\2/p' "$lock")
tag=$release-beam$beam-py$python-$device
revision=$(git rev-parse HEAD 2>/dev/null || true)

arguments+=(--build-arg "DEVICE=$device" --build-arg "RELEASE=$release" --build-arg "REVISION=$revision")
docker build "${arguments[@]}" --target pool --tag "$image:$tag" .
docker build "${arguments[@]}" --target dataflow --tag "$image:$tag-dataflow" .
echo "$image:$tag"
