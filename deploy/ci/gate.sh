#!/usr/bin/env bash
# Proves the model files that are given, or those that git says have changed; for CI jobs and hooks.
#
#   deploy/ci/gate.sh models/*.onnx        these files
#   deploy/ci/gate.sh --staged             what the next commit would change, as a git hook wants it
#
# REPORT=DIR  writes DIR/<model>.html and DIR/gate.json   FULL=true  runs the long matrix too
# Exit codes are the program's: 0 proven, 2 a file that is no model file, 4 a check failed.
set -euo pipefail

command -v tessera-beam >/dev/null || {
  echo "tessera-beam is not on the PATH: pip install 'tessera-beam[cpu]'" >&2
  exit 2
}
files=("$@")
if [ "${1:-}" = --staged ]; then
  # What the index holds, not what lies in the working tree: that is what will be committed.
  top=$(git rev-parse --show-toplevel)
  mapfile -d '' -t files < <(git -C "$top" diff --cached --name-only --diff-filter=ACMR -z -- '*.onnx')
  [ "${#files[@]}" -gt 0 ] || { echo "no model file is staged" >&2; exit 0; }
  staged=$(mktemp -d)
  trap 'rm -rf "$staged"' EXIT
  printf '%s\0' "${files[@]}" | git -C "$top" checkout-index --prefix="$staged/" -z --stdin
  [ -z "${REPORT:-}" ] || { mkdir -p "$REPORT"; REPORT=$(cd "$REPORT" && pwd); }
  cd "$staged"
fi
[ "${#files[@]}" -gt 0 ] || { echo "no model file was given" >&2; exit 2; }

options=()
[ "${FULL:-false}" != true ] || options+=(--full)
if [ -z "${REPORT:-}" ]; then
  tessera-beam model gate "${options[@]}" -- "${files[@]}" && exit 0 || exit "$?"
fi

mkdir -p "$REPORT"
page=$REPORT
[ "${#files[@]}" -gt 1 ] || page=$REPORT/$(basename "${files[0]}" .onnx).html
tessera-beam model gate "${options[@]}" --report "$page" --json -- "${files[@]}" >"$REPORT/gate.json" || code=$?
[ -s "$REPORT/gate.json" ] || rm -f "$REPORT/gate.json"  # refused before a check ran
python3 - "$REPORT/gate.json" <<'PYTHON' || true
import json, sys
try:
    found = json.load(open(sys.argv[1]))
except (OSError, ValueError):
    sys.exit()  # the program's own message stands above
for model in found.get("models", [found]):
    if "refused" in model:
        print(f"{model['path']}: REFUSED, {model['refused']}")
        continue
    failed = [c for c in model["checks"] if not c["ok"]]
    print(f"{model['path']}: {'proven' if model['ok'] else 'REFUSED'}, {len(model['checks'])} checks")
    for c in failed:
        print(f"  FAILED  {c['name']}: {c['measured']} (limit: {c['limit']})")
PYTHON
exit "${code:-0}"
