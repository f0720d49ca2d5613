#!/usr/bin/env bash
# Measures how fast pruning is, with random weights; rows go to results/efficiency/, figures beside them.
#
#   bash scripts/efficiency.sh                # CPU, one thread: judged ratios, phases, memory (about an hour)
#   bash scripts/efficiency.sh gpu            # one CUDA card, 7B widths, bfloat16, batch 1 to 32, also with graphs
#
# More: python -m eval.efficiency --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    bash scripts/setup.sh
    PYTHON=.venv/bin/python
fi
export OMP_NUM_THREADS=1
folder=results/efficiency
case "${1:-cpu}" in
cpu)
    out=$folder/cpu.jsonl
    "$PYTHON" -m eval.efficiency goals --out "$out"
    "$PYTHON" -m eval.efficiency sweep --methods none,stock,visiondrop,visionzip --tokens 64,192 --batch 1,4 --out "$out"
    "$PYTHON" -m eval.efficiency memory --out "$out"
    ;;
gpu)
    # The two rows of the paper's Table 4: LLaVA-1.5 576 -> 64 and LLaVA-NeXT-like 2880 -> 320, at the full size of the 7B model.
    out=$folder/gpu.jsonl
    if ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
        echo "error: torch finds no CUDA card here; run this on a machine with one, or 'cpu' in place of 'gpu'" >&2
        exit 2
    fi
    common=(--size 7b --device cuda --dtype bfloat16 --out "$out")
    attentions=(sdpa)
    if "$PYTHON" -c "import flash_attn" 2>/dev/null; then attentions+=(flash_attention_2); fi
    # Time, memory, decode and largest batch of Table 4's rows; a batch the card cannot hold is left out with a word.
    for attention in "${attentions[@]}"; do
        sweep=("$PYTHON" -m eval.efficiency sweep "${common[@]}" --attention "$attention" --rounds 15 --steps 16)
        "${sweep[@]}" --methods none,stock,visiondrop --tokens 64,32 --batch 1,8,32,64
        "${sweep[@]}" --methods none,stock,visiondrop --tokens 320,160 --units 5 --batch 1,8,32,64
    done
    # With and without graphs: what compile=True switches on.  Graphs need attention that takes a mask.
    "$PYTHON" -m eval.efficiency graphs "${common[@]}" --rounds 15 --tokens 64,32 --batch 1,32
    "$PYTHON" -m eval.efficiency score --device cuda --dtype bfloat16 --out "$out"
    "$PYTHON" -m eval.efficiency memory --device cuda --dtype bfloat16 --out "$out"
    ;;
*)
    echo "error: '$1': allowed are cpu and gpu" >&2
    exit 2
    ;;
esac
"$PYTHON" -m eval.efficiency plot "$out" --folder "$folder"
