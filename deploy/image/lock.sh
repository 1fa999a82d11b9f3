#!/usr/bin/env bash
# Looks up the digests of the base images and writes deploy/image/images.lock, which `make image` reads.
#
#   deploy/image/lock.sh              needs Docker with buildx, and a way to the registries; no image is fetched
#   PYTHON=3.12 deploy/image/lock.sh  for another minor: the one of the machine that submits
#
# The lock is a file to commit: who builds from it builds on the same bases.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-3.11}
beam=$(sed -n 's/^apache-beam==//p' constraints.txt)
[ -n "$beam" ] || { echo "constraints.txt pins no apache-beam" >&2; exit 2; }
command -v docker >/dev/null || { echo "docker is not on the PATH: it asks the registries for the digests" >&2; exit 2; }

digest_of() {
  local found
  found=$(docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}')
  [[ $found =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "$1: the registry gives no digest" >&2; exit 1; }
  printf '%s@%s' "$1" "$found"
}

# Into variables first: a failing command inside an argument of another one would not stop the script.
base=$(digest_of "python:$python-slim-bookworm")
sdk=$(digest_of "apache/beam_python${python}_sdk:$beam")
launcher=$(digest_of "gcr.io/dataflow-templates-base/python${python/./}-template-launcher-base:latest")
cat >deploy/image/images.lock <<LOCK
# Made by deploy/image/lock.sh: base images of the Dockerfile, NAME=image:tag@digest.
PYTHON_IMAGE=$base
BEAM_IMAGE=$sdk
LAUNCHER_IMAGE=$launcher
LOCK
cat deploy/image/images.lock
