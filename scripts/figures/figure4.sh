#!/usr/bin/env bash
# Figure 4: text-guided retention per stage for two questions; results/figures/figure4-*.{pdf,png,txt}
#   bash scripts/figures/figure4.sh [--model M --image FILE --question "…"] [--device cpu|cuda] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../tables/_run.sh" figure4 "$@"
