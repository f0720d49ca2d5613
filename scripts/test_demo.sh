#!/usr/bin/env bash
# Makes the demo's environment and runs its tests, those in a browser included (apt-get install chromium).
# Run: bash scripts/test_demo.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh demo
export OMP_NUM_THREADS=1
exec .venv-demo/bin/python -m pytest -q tests/visiondrop/test_demo_*.py tests/test_tour.py "$@"
