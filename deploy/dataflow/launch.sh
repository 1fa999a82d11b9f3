#!/usr/bin/env bash
# Builds the flex template's spec, or starts a job from it. Needs gcloud, logged in as somebody with the rights of IAM.md.
#
#   deploy/dataflow/launch.sh build
#   deploy/dataflow/launch.sh run inventory=gs://B/2024.parquet model=gs://B/m.onnx out=gs://B/embeddings device=cuda \
#     accelerator=nvidia-l4 memory=24
#
# PROJECT, REGION, BUCKET    of the job; BUCKET without gs://, in REGION
# IMAGE                      workers and launcher: ..-cuda-dataflow (deploy/README.md)
# SERVICE_ACCOUNT            that workers and launcher act as
# MACHINE WORKERS MAX_WORKERS SUBNETWORK LABELS NAME         have defaults, or need none
# What may stand behind `run` is in metadata.json; gcloud holds each value against its form before a machine starts.
set -euo pipefail
cd "$(dirname "$0")"

: "${PROJECT:?the id of the project}" "${REGION:?the region of the bucket}" "${BUCKET:?a bucket, without gs://}"
: "${IMAGE:?the image, ..-dataflow}"
spec=gs://$BUCKET/templates/tessera-beam-${IMAGE##*:}.json

case "${1:-}" in
  build)
    gcloud dataflow flex-template build "$spec" --project "$PROJECT" --image "$IMAGE" --sdk-language PYTHON \
      --metadata-file metadata.json
    ;;
  run)
    shift
    [ "$#" -gt 0 ] || { echo "which job? inventory=.. model=.. out=.. device=.." >&2; exit 2; }
    : "${SERVICE_ACCOUNT:?the account that the workers act as}"
    parameters="^;^sdk_container_image=$IMAGE" # ; between them: a bounding box has commas
    for parameter in "$@"; do
      [[ $parameter == *=* && $parameter != *";"* ]] || { echo "$parameter: name=value is wanted" >&2; exit 2; }
      parameters+=";$parameter"
    done
    more=()
    [ -z "${SUBNETWORK:-}" ] || more+=(--subnetwork "$SUBNETWORK")
    [ -z "${LABELS:-}" ] || more+=(--additional-user-labels "$LABELS")
    gcloud dataflow flex-template run "${NAME:-tessera-beam-$(date -u +%Y%m%d-%H%M%S)}" \
      --project "$PROJECT" --region "$REGION" --template-file-gcs-location "$spec" \
      --temp-location "gs://$BUCKET/dataflow/temp" --staging-location "gs://$BUCKET/dataflow/staging" \
      --service-account-email "$SERVICE_ACCOUNT" --worker-machine-type "${MACHINE:-g2-standard-8}" \
      --num-workers "${WORKERS:-1}" --max-workers "${MAX_WORKERS:-10}" --disable-public-ips "${more[@]}" \
      --parameters "$parameters"
    ;;
  *)
    echo "deploy/dataflow/launch.sh build, or run name=value .." >&2
    exit 2
    ;;
esac
