#!/usr/bin/env bash
# MSVD-QA under a visual token budget: bash scripts/eval/msvd.sh 256 --data DIR [--method M] [--model PATH_OR_ID] …
# Judged: … --protocol paper --judge-url URL --judge-model NAME (the key in $OPENAI_API_KEY).
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" msvd "$@"
