#!/usr/bin/env bash
# Starts one vLLM server of the tiny model on CPU, on 127.0.0.1, and waits until it answers (30 s, the first time 100 s).
# Usage: serve.sh generate|pooling PORT [more `vllm serve` flags]      serve.sh stop [PORT]
#   generate  model name `tiny`: chat, completions, responses, messages, generate
#   pooling   model name `tiny-embed`: embeddings, rerank, score
#   env: TIDEGATE_VLLM  folder of install.sh. About 2 GB of memory per server.
set -euo pipefail
home="${TIDEGATE_VLLM:-${TMPDIR:-/tmp}/tidegate-vllm}"
run="$home/run"
[ -x "$home/venv/bin/vllm" ] || { echo "no vLLM in $home: run install.sh, or set TIDEGATE_VLLM" >&2; exit 1; }
mkdir -p "$run"

if [ "${1:-}" = stop ]; then
  for file in "$run"/${2:-*}.pid; do
    [ -e "$file" ] || continue
    kill "$(cat "$file")" 2>/dev/null && echo "stopped $(basename "$file" .pid)"
    # Until it is gone it answers /health, and its successor cannot listen.
    for _ in $(seq 100); do kill -0 "$(cat "$file")" 2>/dev/null || break; sleep 0.1; done
    rm -f "$file"
  done
  exit 0
fi

kind="${1:?generate, pooling or stop}" port="${2:?port}"
shift 2
case "$kind" in
  generate) set -- --served-model-name tiny --enable-auto-tool-choice --tool-call-parser hermes \
    --enable-prompt-tokens-details --enable-scale-out "$@" ;;
  pooling) set -- --served-model-name tiny-embed --runner pooling --convert embed "$@" ;;
  *) echo "unknown kind of server: $kind (generate or pooling)" >&2; exit 1 ;;
esac

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 CUDA_VISIBLE_DEVICES=""
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 VLLM_HOST_IP=127.0.0.1
export PYTHONHASHSEED=0 TMPDIR="$home"
export VLLM_SERVER_DEV_MODE=1               # the routes that the gate must refuse exist
export VLLM_ENABLE_RESPONSES_API_STORE=1    # GET /v1/responses/{id} works
unset PYTHONDONTWRITEBYTECODE               # with byte code on disk a start takes 30 s instead of 100 s

cd "$home" # the model's path is relative: /v1/models shows it
setsid "$home/venv/bin/vllm" serve ./tiny-model --host 127.0.0.1 --port "$port" --enforce-eager --dtype bfloat16 \
  --block-size 32 --max-num-seqs 16 --num-gpu-blocks-override 512 --allowed-origins '["*"]' "$@" >"$run/$port.log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$run/$port.pid"
for _ in $(seq 300); do
  kill -0 "$pid" 2>/dev/null || { tail -n 40 "$run/$port.log" >&2; echo "the server on port $port died" >&2; exit 1; }
  if curl -fsS -o /dev/null -m 2 "http://127.0.0.1:$port/health" 2>/dev/null; then
    echo "$kind server ready on http://127.0.0.1:$port (pid $pid, log $run/$port.log)"
    exit 0
  fi
  sleep 1
done
tail -n 40 "$run/$port.log" >&2
echo "the server on port $port did not answer within 300 s" >&2
exit 1
