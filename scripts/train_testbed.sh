#!/usr/bin/env bash
# Trains the testbed model from scratch and writes OUT/checkpoint in the original LLaVA layout.
#
#   bash scripts/train_testbed.sh --out runs/testbed                   # configs/testbed/default.yaml
#   bash scripts/train_testbed.sh --out runs/testbed --steps 20000     # the same curriculum, longer
#
# Uses a GPU when there is one. Stop it at any time (Ctrl-C, SIGTERM): the same command goes on where it was.
# Other options: --config FILE, --threads N, --workers N, --device auto|cpu|cuda.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_python.sh
exec "$PYTHON" -m testbed.training.train "$@"
