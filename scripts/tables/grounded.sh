#!/usr/bin/env bash
# The grounded testbed: methods and positions; results/tables/grounded-testbed.{md,tex,csv}
#   bash scripts/tables/grounded.sh [--data DIR] [--device cpu|cuda] [--jobs N] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" grounded "$@"
