#!/usr/bin/env bash
# Makes the serving environment (4 minutes) and tests real servers on loopback (6 minutes on two idle cores).
# Where the environment cannot be made it says so and ends with 0.
# Run: bash scripts/test_serving.sh [pytest arguments]      More questions: SERVED_QUESTIONS=500 SERVED_REQUESTS=5000 bash scripts/test_serving.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! bash scripts/serve/setup.sh >&2; then
    echo "skipped: the serving environment cannot be made here (see above); docs/serving.md says what it needs"
    exit 0
fi
export OMP_NUM_THREADS=1
exec .venv-serve/bin/python -m pytest -q tests/serving "$@"
