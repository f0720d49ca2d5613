#!/usr/bin/env bash
# Makes the serving environment .venv-serve from the lock requirements-serve.txt, with vLLM's build for processors and this checkout.
# On a machine with a card: pip install -e '.[serve]' in an environment of your own.
# Run: bash scripts/serve/setup.sh      (3.5 GB, 4 minutes once; Python 3.11 to 3.13)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
base="${BASE_PYTHON:-python3}"
if ! "$base" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))'; then
    echo "error: $base is $("$base" -V), and vLLM's build for processors needs Python 3.11 or newer: BASE_PYTHON=/path/to/python3" >&2
    exit 2
fi
bash scripts/setup.sh serve
python=.venv-serve/bin/python
if ! "$python" -c 'from importlib.metadata import entry_points as e; assert "visiondrop" in e(group="vllm.general_plugins").names' 2>/dev/null; then
    "$python" scripts/serve/_torchvision.py
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
fi
