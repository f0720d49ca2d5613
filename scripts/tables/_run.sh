#!/usr/bin/env bash
# Shared by the scripts of tables and figures: runs what is missing, then draws (python -m figures.reproduce.make NAME …).
# Works from any directory (paths you give are relative to yours).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_python.sh"
exec "$PYTHON" -m figures.reproduce.make "$@"
