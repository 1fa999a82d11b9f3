#!/usr/bin/env bash
# Starts a job on the cluster of cluster.yaml, from a machine that kubectl works on.
#
#   deploy/flink/submit.sh                     the job of flink.toml; more options of `embed` may follow
#   deploy/flink/submit.sh --tiles 33TWL --no-wait
#
# The jar is Beam's, for the pair that is pinned; get beam-runners-flink-1.20-job-server of version 2.77.0 from Maven
# Central (group org.apache.beam) once, and put it where flink.toml says. Java is needed here only to read it.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
namespace=${NAMESPACE:-tessera}
port=${PORT:-8081}

command -v kubectl >/dev/null || { echo "kubectl is not on the PATH" >&2; exit 2; }
command -v tessera-beam >/dev/null || { echo "tessera-beam is not on the PATH: the release of the image" >&2; exit 2; }
kubectl --namespace "$namespace" wait --for=condition=Available --timeout=600s deployment/tessera
kubectl --namespace "$namespace" port-forward service/tessera-rest "$port:8081" >/dev/null &
forward=$!
trap 'kill "$forward" 2>/dev/null || true; wait "$forward" 2>/dev/null || true' EXIT
for _ in $(seq 50); do
  (exec 3<>"/dev/tcp/localhost/$port") 2>/dev/null && break
  kill -0 "$forward" 2>/dev/null || { echo "no way to service/tessera-rest in namespace $namespace" >&2; exit 1; }
  sleep 0.2
done
tessera-beam embed --config "$folder/flink.toml" --set "master=localhost:$port" "$@"
