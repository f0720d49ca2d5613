#!/usr/bin/env bash
# The testbed with a pretrained decoder (first: bash scripts/testbed/pretrained.sh); results/tables/pretrained-testbed.{md,tex,csv}
#   bash scripts/tables/pretrained.sh [--data DIR] [--device cpu|cuda] [--jobs N] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" pretrained "$@"
