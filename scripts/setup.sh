#!/usr/bin/env bash
# Makes the environment .venv in the repository from the lock requirements.txt, or brings it up to date; with a name,
# .venv-NAME from requirements-NAME.txt.
# Run: bash scripts/setup.sh [demo]     Another base interpreter: BASE_PYTHON=/path/to/python3 bash scripts/setup.sh
# An environment that already has everything: PYTHON=/path/to/python bash scripts/...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=".venv${1:+-$1}"
lock="requirements${1:+-$1}.txt"
if [ ! -f "$lock" ]; then
    echo "error: there is no $lock; the locks are $(ls requirements*.txt | tr '\n' ' ')" >&2
    exit 2
fi
base="${BASE_PYTHON:-python3}"
if ! command -v "$base" >/dev/null; then
    echo "error: $base was not found; install Python 3.10 to 3.13, or name one: BASE_PYTHON=/path/to/python3" >&2
    exit 2
fi
if ! "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
    echo "error: $base is $("$base" -V); the lock holds for Python 3.10 to 3.13: BASE_PYTHON=/path/to/python3" >&2
    exit 2
fi
wanted="$(cksum < "$lock") $("$base" -c 'import sys; print(sys.version_info[:2])')"
if [ -f "$venv/installed" ] && [ "$(cat "$venv/installed")" = "$wanted" ]; then
    exit 0
fi
echo "Installing into $venv (about 2 GB; 2-3 minutes once) ..."
rm -rf "$venv"
"$base" -m venv "$venv"
install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
# torch first, with its own dependencies: a machine with a GPU gets the CUDA companions that torch pins, a CPU build none.
"${install[@]}" "$(grep -E '^torch==' "$lock")"
# Then everything that is locked.  The lock is complete, so nothing may bring dependencies of its own.
"${install[@]}" --no-deps -r "$lock"
echo "$wanted" > "$venv/installed"
