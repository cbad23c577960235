#!/usr/bin/env bash
# Starts real vLLM servers for prefill and decode on two pods (NixlConnector over UCX on loopback), and one without a connector to
# compare with: prefill 8101, decode 8201 and 8202, whole 8001. Needs install.sh. About 2.5 GB of memory each.
# Usage: pd.sh up | start prefill|decode1|decode2|whole | stop [NAME]
#   env: TIDEGATE_VLLM  folder of install.sh     LEASE  kv_lease_duration of the prefill server in seconds (default 30)
#        BLOCKS  KV blocks of 32 tokens per server (default 2048)   KV_ROLE  role of all (kv_both: decoders prefill too)
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export UCX_TLS="${UCX_TLS:-tcp,self}" UCX_NET_DEVICES="${UCX_NET_DEVICES:-lo}" NIXL_PTHR_DELAY_US="${NIXL_PTHR_DELAY_US:-1000}"
export VLLM_NIXL_SIDE_CHANNEL_HOST=127.0.0.1

start() { # NAME
  local role="" port="" side="" connector=()
  case "$1" in
    prefill) role=kv_producer port=8101 side=5600 ;;
    decode1) role=kv_consumer port=8201 side=5601 ;;
    decode2) role=kv_consumer port=8202 side=5602 ;;
    whole) port=8001 ;;
    *) echo "unknown server: $1" >&2; exit 2 ;;
  esac
  if [ -n "$role" ]; then
    export VLLM_NIXL_SIDE_CHANNEL_PORT="$side"
    connector=(--kv-transfer-config "{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"${KV_ROLE:-$role}\",\"engine_id\":\"$1-$$\",\"kv_buffer_device\":\"cpu\",\"kv_connector_extra_config\":{\"kv_lease_duration\":${LEASE:-30}}}")
  fi
  "$here/serve.sh" generate "$port" --dtype float32 --num-gpu-blocks-override "${BLOCKS:-2048}" \
    --max-model-len 8192 "${connector[@]}"
}

port_of() { case "$1" in prefill) echo 8101 ;; decode1) echo 8201 ;; decode2) echo 8202 ;; whole) echo 8001 ;; esac; }

case "${1:-}" in
  up)
    pids=()
    for name in prefill decode1 decode2 whole; do start "$name" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid"; done
    ;;
  start) start "${2:?name}" ;;
  stop)
    for name in ${2:-prefill decode1 decode2 whole}; do "$here/serve.sh" stop "$(port_of "$name")"; done
    ;;
  *) sed -n '2,7p' "$0" >&2; exit 2 ;;
esac
