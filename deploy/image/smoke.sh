#!/usr/bin/env bash
# Starts a built image in every way that it is used: deploy/image/smoke.sh tessera-beam:TAG
set -euo pipefail
image=${1:?which image? deploy/image/smoke.sh tessera-beam:TAG}

inside() { docker run --rm --network none --entrypoint "$1" "$image" "${@:2}"; }
[ "$(inside id -u)" != 0 ] || [[ $image == *-dataflow ]] || { echo "$image runs as root" >&2; exit 4; }
inside tessera-beam --version
model=$(inside python -c 'from pipeline.demo.run import model_path; print(model_path())')
inside tessera-beam model show "$model" >/dev/null
inside python -m pip show --quiet apache-beam  # boot asks this, and gives up where there is none
inside python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is not None)'
inside python -c 'import rasterio; from rasterio.crs import CRS; CRS.from_epsg(32633)'  # PROJ's data
inside test -x /opt/google/dataflow/python_template_launcher
if docker run --rm --network none --entrypoint sh "$image" -c 'command -v gcc || command -v cc'; then
  echo "$image has a compiler" >&2
  exit 4
fi

# The pool opens its port, which is what Flink's readiness probe asks for.
pool=$(docker run --rm --detach --network none "$image" --worker_pool)
trap 'docker kill "$pool" >/dev/null' EXIT
asked='import socket; socket.create_connection(("localhost", 50000), 1).close()'
for _ in $(seq 60); do
  if docker exec "$pool" python -c "$asked" 2>/dev/null; then
    echo "$image: the worker pool listens"
    exit 0
  fi
  sleep 1
done
echo "$image: no worker pool on port 50000 after a minute" >&2
docker logs "$pool" >&2
exit 4
