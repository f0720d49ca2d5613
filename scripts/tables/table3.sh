#!/usr/bin/env bash
# Table 3: Video-LLaVA (or its stand-in) under 256 tokens; results/tables/table3-*.{md,tex,csv}
#   bash scripts/tables/table3.sh [--model M] [--protocol offline|paper] [--data DIR] [--device cpu|cuda] [--dry-run] [--force] [--draw-only]
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" table3 "$@"
