#!/usr/bin/env bash
# The figures of docs/benchmarks.md for one GPU: what the kernels reach against one plain copy, then
# whole updates of Qwen3-4B with AdamW. Writes one report a run into DIR and prints them.
#
#   benchmarks/single_gpu.sh BUILD_DIR OUT_DIR
#
# The machine must have seen its memory before (a first run may be slowed by memory that the host
# hands out on first touch): the first update is repeated.
set -euo pipefail
build=${1:?usage: $0 BUILD_DIR OUT_DIR}
out=${2:?usage: $0 BUILD_DIR OUT_DIR}
mkdir -p "$out"

update() { # NAME OPTIONS...: one update of Qwen3-4B on one GPU
  local name=$1
  shift
  echo "== $name: $*"
  mpirun -np 2 --bind-to none "$build/awex-colocate" update --model preset:qwen3-4b \
    --optimizer adamw --versions 3 --kv-cache 8GiB --json "$out/$name.json" "$@" |
    tee "$out/$name.txt"
}

"$build/tests/gpu/kernel_bench" | tee "$out/kernels.txt"
update qwen3-4b-first
update qwen3-4b
update qwen3-4b-verify-off --verify off
update qwen3-4b-resident --no-offload --kv-cache 2GiB
