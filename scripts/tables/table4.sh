#!/usr/bin/env bash
# Table 4: FLOPs at full size, time and memory with random weights; results/tables/table4*.{md,tex,csv}
#   bash scripts/tables/table4.sh [--device cuda|cpu] [--size 7b|small] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" table4 "$@"
