#!/usr/bin/env bash
# Makes the environment and runs the tests.  Run: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    bash scripts/setup.sh
    PYTHON=.venv/bin/python
fi
# One thread per process: the models are small, and the machine may be shared.
export OMP_NUM_THREADS=1 PYTHON
# One process per core, whole files each: files share models that take seconds to make.
exec "$PYTHON" -m pytest -q -n auto --maxprocesses 4 --dist loadfile "$@"
