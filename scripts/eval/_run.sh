#!/usr/bin/env bash
# Shared by the scripts beside it: the first argument is the benchmark, the second the budget, the rest goes to eval.run.
# Uses $PYTHON, else the repository's .venv, else python3; works from any directory (paths you give are relative to yours).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
benchmark="$1"
shift
if [ $# -eq 0 ]; then
  echo "usage: bash scripts/eval/$benchmark.sh TOKENS [--method M] [--model PATH_OR_ID] [--data DIR] [--protocol offline|paper] …" \
    "(TOKENS: mean visual tokens per LLM layer, e.g. 64; all options: --help)" >&2
  exit 2
fi
case "$1" in
  -*) budget=() ;; # no budget: --help, or a method with explicit settings
  *) budget=(--tokens "$1") && shift ;;
esac
if [ -z "${PYTHON:-}" ]; then
  PYTHON="$root/.venv/bin/python"
  [ -x "$PYTHON" ] || PYTHON=python3
fi
# The package is found through PYTHONPATH, and the working directory, which may hold a folder called eval, is not searched.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
exec "$PYTHON" -m eval.run "$benchmark" ${budget[@]+"${budget[@]}"} "$@"
