#!/usr/bin/env bash
# Makes the environment and runs the main job offline: VisionDrop at 64 tokens against the unpruned model and random
# pruning on the testbed's quick set.  Run: bash scripts/quickstart.sh [--tokens N]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    bash scripts/setup.sh
    PYTHON=.venv/bin/python
fi
exec "$PYTHON" -m testbed.quickstart "$@"
