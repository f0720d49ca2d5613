# Sourced by scripts that install nothing: sets PYTHON and what it needs to find the package, or says how to get one.
# $PYTHON wins, then the repository's .venv, then python3.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
  PYTHON="$root/.venv/bin/python"
  [ -x "$PYTHON" ] || PYTHON=python3
fi
needed='import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, ("torch", "transformers"))))'
if ! "$PYTHON" -c "$needed" 2>/dev/null; then
  echo "error: '$PYTHON' is no Python with torch and transformers: run 'bash $root/scripts/setup.sh', which makes" \
    "$root/.venv, or name another interpreter by PYTHON=/path/to/python" >&2
  exit 2
fi
# The package is found through PYTHONPATH, and the working directory, which may hold a folder called eval, is not searched.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
