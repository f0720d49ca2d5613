#!/usr/bin/env bash
# Resolves every requirements*.in into the lock beside it (requirements.txt, requirements-NAME.txt), for Python 3.10 to
# 3.13 by markers.  Run: bash scripts/lock.sh [--upgrade]      (a few minutes at most; needs the network)
# Without --upgrade the versions of the present lock stay wherever the .in files still allow them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tool=.venv/bin/uv
if [ ! -x "$tool" ]; then
    python3 -m venv .venv-lock
    .venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
    tool=.venv-lock/bin/uv
fi
for wanted in requirements*.in; do
    lock="${wanted%.in}.txt"
    overrides="${wanted%.in}.overrides"
    [ -f "$overrides" ] || overrides=/dev/null
    "$tool" pip compile --quiet --universal --python-version 3.10 --override "$overrides" "$@" \
        --no-emit-index-url --custom-compile-command "bash scripts/lock.sh" "$wanted" --output-file "$lock"
    echo "$lock: $(grep -cE '^[a-zA-Z0-9]' "$lock") distributions"
done
