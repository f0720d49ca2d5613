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
# In bfloat16 torch keeps a kernel for each of 1,024 shapes in each of two caches, and every budget has shapes of its own.
export LRU_CACHE_CAPACITY="${LRU_CACHE_CAPACITY:-64}" ONEDNN_PRIMITIVE_CACHE_CAPACITY="${ONEDNN_PRIMITIVE_CACHE_CAPACITY:-64}"
exec "$PYTHON" -m visiondrop demo "$@"
