#!/usr/bin/env bash
# Runs the tests of the core and of llava/ on the oldest supported transformers, laid over the environment without
# changing it.  Run: bash scripts/test_oldest.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_core_tests.sh
if [ -z "${PYTHON:-}" ]; then
    bash scripts/setup.sh
    PYTHON=.venv/bin/python
fi
overlay=.venv-oldest
if [ ! -f "$overlay/installed" ]; then
    rm -rf "$overlay"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --target "$overlay" \
        transformers==5.17.0 "huggingface_hub>=1.5,<2.0" httpx httpcore h11 anyio sniffio
    touch "$overlay/installed"
fi
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD/$overlay"
exec "$PYTHON" -m pytest -q -p no:cacheprovider "$@" "${CORE[@]}"
