#!/usr/bin/env bash
# Shared by the scripts beside it: the first argument is the benchmark, the second the budget, the rest goes to eval.run.
# Works from any directory (paths you give are relative to yours).
set -euo pipefail
benchmark="$1"
shift
if [ $# -eq 0 ]; then
  echo "usage: bash scripts/eval/$benchmark.sh TOKENS [--method M] [--model PATH_OR_ID] [--data DIR] [--protocol offline|paper] …" \
    "(TOKENS: mean visual tokens per LLM layer, e.g. 64, or a share, e.g. 22%; all options: --help)" >&2
  exit 2
fi
case "$1" in
  -*) budget=() ;; # no budget: --help, or a method with explicit settings
  *) budget=(--tokens "$1") && shift ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/../_python.sh"
exec "$PYTHON" -m eval.run "$benchmark" ${budget[@]+"${budget[@]}"} "$@"
