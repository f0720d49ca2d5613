#!/usr/bin/env bash
# Table 1: LLaVA-1.5 (or the testbed) under 192, 128, 64 and 32 tokens; results/tables/table1-*.{md,tex,csv}
#   bash scripts/tables/table1.sh [--model M] [--protocol offline|paper] [--data DIR] [--device cpu|cuda] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" table1 "$@"
