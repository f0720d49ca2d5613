#!/usr/bin/env bash
# Makes the demo's environment once and starts the page on this machine.
# Run: bash scripts/demo.sh [--model PATH_OR_ID] [--port 7860] [--host 127.0.0.1]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    bash scripts/setup.sh demo
    PYTHON=.venv-demo/bin/python
fi
export MALLOC_ARENA_MAX="${MALLOC_ARENA_MAX:-2}"  # else glibc keeps freed memory once for every thread
exec "$PYTHON" -m visiondrop demo "$@"
