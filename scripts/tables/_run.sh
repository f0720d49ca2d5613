#!/usr/bin/env bash
# Shared by the scripts of tables and figures: runs what is missing, then draws (python -m figures.make NAME …).
# Uses $PYTHON, else the repository's .venv, else python3; works from any directory (paths you give are relative to yours).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
  PYTHON="$root/.venv/bin/python"
  [ -x "$PYTHON" ] || PYTHON=python3
fi
# The package is found through PYTHONPATH, and the working directory, which may hold a folder called eval, is not searched.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
exec "$PYTHON" -m figures.make "$@"
