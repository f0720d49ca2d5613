#!/usr/bin/env bash
# All tables and figures, one after another; the cost (hours per card) is printed first. Stop it at any time: the same
# command goes on where it was, finished runs are not repeated.
#   bash scripts/reproduce.sh                                                  # the testbed, offline, on any laptop
#   bash scripts/reproduce.sh --dry-run --model liuhaotian/llava-v1.5-7b       # what the 7B tables would cost
#   bash scripts/reproduce.sh --model liuhaotian/llava-v1.5-7b --device cuda --data /data/sets
# Options: --protocol offline|paper, --data DIR, --device, --size small|7b, --force, --draw-only, --jobs N (testbed: runs at
# a time); behind --: to eval.run.
exec bash "$(dirname "${BASH_SOURCE[0]}")/tables/_run.sh" all "$@"
