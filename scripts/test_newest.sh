#!/usr/bin/env bash
# Installs the newest of everything that the core allows and runs its tests, so that the next release that breaks us is
# seen by us first.  Run: bash scripts/test_newest.sh [pytest arguments]
# TORCH="torch==2.13.0" keeps torch where the newest cannot be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_core_tests.sh
venv=.venv-newest
rm -rf "$venv"
"${BASE_PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
"$venv/bin/python" -m pip install --quiet --upgrade --upgrade-strategy eager "${TORCH:-torch}" . \
    pytest accelerate sentencepiece tiktoken protobuf PyYAML av numpy packaging
"$venv/bin/python" -m visiondrop doctor || true
"$venv/bin/python" -m pip list 2>/dev/null | grep -iE "^(torch|transformers|tokenizers|safetensors|huggingface|numpy|pillow|accelerate) "
export OMP_NUM_THREADS=1
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider "$@" "${CORE[@]}"
