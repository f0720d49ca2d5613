#!/usr/bin/env bash
# Controls on the testbed: one token, the unmasked and the text-guided score; results/tables/controls-testbed.{md,tex,csv}
#   bash scripts/tables/controls.sh [--data DIR] [--device cpu|cuda] [--jobs N] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" controls "$@"
