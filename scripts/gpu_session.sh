#!/usr/bin/env bash
# Everything that only a card can show, most important first, in under ten minutes: the tests that skip without CUDA, then
# rows at full size with random weights.  Needs torch, transformers, pandas, matplotlib and pytest.
#
#   PYTHON=python3 bash scripts/gpu_session.sh FOLDER      # FOLDER gets tests.log, gpu.log and gpu.jsonl
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?"give a folder for the results"}
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=8 PYTHONUNBUFFERED=1
mkdir -p "$out"
common=(--device cuda --dtype bfloat16 --out "$out/gpu.jsonl")

measure() { # SECONDS COMMAND...: rows are written as they are measured, so a step that is cut off loses only itself
    local limit=$1
    shift
    echo "== $* ($(date +%T))" | tee -a "$out/gpu.log"
    timeout "$limit" "$python" -m eval.efficiency "$@" "${common[@]}" 2>&1 | grep -v Warning | tee -a "$out/gpu.log"
}

timeout 110 "$python" -m pytest -q -p no:cacheprovider tests/llava/test_graphs.py tests/visiondrop/test_fused.py \
    2>&1 | tail -15 | tee "$out/tests.log"
measure 90 graphs --size 7b --tower clip-l --rounds 11 --steps 16 --tokens 64 --batch 1,16 --methods none,visiondrop,visionzip
measure 90 sweep --size 7b --rounds 9 --steps 16 --methods none,stock,visiondrop,visionzip,vispruner --tokens 64 --batch 1,16
measure 120 family --size 7b --rounds 7 --steps 16 --batch 1,8
measure 80 sweep --size 7b --rounds 7 --steps 8 --methods none,stock,visiondrop --tokens 320 --units 5 --batch 8
measure 40 score --rounds 9
