#!/usr/bin/env bash
# Throughput and time to the first token of served models, from results/serving/*.jsonl; results/figures/served.{pdf,png,txt}
#   bash scripts/figures/served.sh      (rows: bash scripts/serve/benchmark.sh)
exec bash "$(dirname "${BASH_SOURCE[0]}")/../tables/_run.sh" served "$@"
