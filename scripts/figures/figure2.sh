#!/usr/bin/env bash
# Figure 2: PyramidDrop with text-guided against visual-only scores; results/figures/figure2-*.{pdf,png,txt}
#   bash scripts/figures/figure2.sh [--model M] [--protocol offline|paper] [--data DIR] [--device cpu|cuda] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../tables/_run.sh" figure2 "$@"
