#!/usr/bin/env bash
# Accuracy against measured time (beyond the paper); results/figures/accuracy-time-*.{pdf,png,txt}
#   bash scripts/figures/accuracy-time.sh [--model M] [--protocol offline|paper] [--data DIR] [--device cpu|cuda] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../tables/_run.sh" accuracy-time "$@"
