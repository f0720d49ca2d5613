#!/usr/bin/env bash
# Accuracy against mean tokens, all methods (beyond the paper); results/figures/accuracy-tokens-*.{pdf,png,txt}
#   bash scripts/figures/accuracy-tokens.sh [--model M] [--protocol offline|paper] [--data DIR] [--device cpu|cuda] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../tables/_run.sh" accuracy-tokens "$@"
