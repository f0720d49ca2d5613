#!/usr/bin/env bash
# Figure 6: ablations at a mean of 128 tokens; results/figures/figure6-*.{pdf,png,txt}
#   bash scripts/figures/figure6.sh [--model M] [--protocol offline|paper] [--data DIR] [--device cpu|cuda] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../tables/_run.sh" figure6 "$@"
