#!/usr/bin/env bash
# Figure 1: text-to-image against image-to-image attention; results/figures/figure1-*.{pdf,png,txt}
#   bash scripts/figures/figure1.sh [--model M --image FILE --question "…"] [--device cpu|cuda] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../tables/_run.sh" figure1 "$@"
