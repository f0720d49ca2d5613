#!/usr/bin/env bash
# Starts a server of a wide model with random weights on loopback and loads it, unpruned and pruned rounds in turn; on the CPU then the
# testbed too.  Rows go to results/serving/.  A call that was broken off goes on.
#
#   bash scripts/serve/benchmark.sh        # CPU, one thread, float32, decoder of width 1024 (about 20 minutes on two cores)
#   bash scripts/serve/benchmark.sh cpu --rounds 1      # any flag of `python -m eval.serving load`
#   bash scripts/serve/benchmark.sh gpu    # one CUDA card, 7B widths, bfloat16 (vLLM of the environment PYTHON, default .venv-serve)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON="${PYTHON:-.venv-serve/bin/python}"
where="${1:-cpu}"
shift || true
more=("$@")
case "$where" in
cpu)
    [ "$PYTHON" != .venv-serve/bin/python ] || bash scripts/serve/setup.sh
    export OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=6
    size=small dtype=float32 device=cpu flags=(--enforce-eager)
    loads=(--concurrency 1,4,16,64 --requests 4,8,32,64 --rounds 3 --new-tokens 8)
    ;;
gpu)
    if ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
        echo "error: torch of $PYTHON finds no CUDA card here; run this on a machine with one, or 'cpu' in place of 'gpu'" >&2
        exit 2
    fi
    size=7b dtype=bfloat16 device=cuda flags=()
    loads=(--concurrency 1,4,16,64 --requests 32,64,256,512 --rounds 6 --new-tokens 16)
    ;;
*)
    echo "error: '$where': allowed are cpu and gpu" >&2
    exit 2
    ;;
esac
held="$(mktemp -d)"
server=
stop() {
    [ -z "$server" ] || kill -TERM -- "-$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    server=
}
trap 'stop; rm -rf "$held"' EXIT

# measure FOLDER ROWS [flags of `load`]: serve it, load it, end it.
measure() {
    local folder="$1" rows="$2" port
    shift 2
    port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    # No prefix cache and no processor cache: what is counted is what is computed.
    set -m
    HF_HUB_OFFLINE=1 "$PYTHON" -m visiondrop serve "$folder" --method none --dtype "$dtype" --max-model-len 1024 --trust-request-mm-kwargs \
        --no-enable-prefix-caching --mm-processor-cache-gb 0 "${flags[@]}" --host 127.0.0.1 --port "$port" >"$held/server.log" 2>&1 &
    server=$!
    set +m
    until "$PYTHON" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/health', timeout=5)" 2>/dev/null; do
        if ! kill -0 "$server" 2>/dev/null; then
            tail -20 "$held/server.log" >&2
            echo "error: the server ended (see above)" >&2
            exit 2
        fi
        sleep 2
    done
    "$PYTHON" -m eval.serving load --server "http://127.0.0.1:$port" --process "$server" --device "$device" --dtype "$dtype" \
        --out "$rows" "$@" "${more[@]}"
    stop
}

"$PYTHON" -m eval.serving model "$size" "$held/wide-$size" --dtype "$dtype"
measure "$held/wide-$size" "results/serving/local-$where-$size.jsonl" "${loads[@]}"
if [ "$where" = cpu ]; then
    "$PYTHON" -m llava.export_hub checkpoints/testbed "$held/testbed"
    measure "$held/testbed" results/serving/local-cpu-testbed.jsonl --concurrency 1,4,16,64 --requests 8,32,64,128 --rounds 3 --new-tokens 4
fi
# Until all are there rows are in files that git ignores: each says whether the tree was clean.
for rows in results/serving/local-"$where"-*.jsonl; do mv "$rows" "${rows/local-/}"; done
echo "the figure: bash scripts/figures/served.sh"
