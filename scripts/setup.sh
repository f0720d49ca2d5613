#!/usr/bin/env bash
# Makes the environment .venv in the repository, or brings it up to date.  Run: bash scripts/setup.sh
# Another interpreter that already has everything: PYTHON=/path/to/python bash scripts/...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
wanted=$(cat requirements.txt requirements-nodeps.txt | cksum)
if [ -f "$venv/installed" ] && [ "$(cat "$venv/installed")" = "$wanted" ]; then
    exit 0
fi
if ! command -v "${BASE_PYTHON:-python3}" >/dev/null; then
    echo "error: python3 was not found; install Python 3.10 or newer, or name one: BASE_PYTHON=/path/to/python3" >&2
    exit 2
fi
echo "Installing into $venv (about 2 GB; 2-3 minutes once) ..."
"${BASE_PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.txt
echo "$wanted" > "$venv/installed"
