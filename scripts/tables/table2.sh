#!/usr/bin/env bash
# Table 2: LLaVA-NeXT (or its stand-in) under 640, 320 and 160 tokens; results/tables/table2-*.{md,tex,csv}
#   bash scripts/tables/table2.sh [--model M] [--protocol offline|paper] [--data DIR] [--device cpu|cuda] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" table2 "$@"
