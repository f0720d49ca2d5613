#!/usr/bin/env bash
# Figure 3: tokens kept after a shallow layer, and the mean retention map; results/figures/figure3-*.{pdf,png,txt}
#   bash scripts/figures/figure3.sh [--model M --image FILE --question "…"] [--device cpu|cuda] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../tables/_run.sh" figure3 "$@"
