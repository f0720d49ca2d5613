#!/usr/bin/env bash
# Figure 5: the pipeline, drawn from the plan; results/figures/figure5.{pdf,png,txt}
#   bash scripts/figures/figure5.sh
exec bash "$(dirname "${BASH_SOURCE[0]}")/../tables/_run.sh" figure5 "$@"
