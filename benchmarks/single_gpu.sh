#!/usr/bin/env bash
# The figures of docs/benchmarks.md for one GPU: what the kernels reach against one plain copy, then
# whole updates of Qwen3-4B with AdamW. Writes one report a run into OUT_DIR.
#
#   benchmarks/single_gpu.sh BUILD_DIR OUT_DIR
#
# The first run touches the machine's memory, which some hosts hand out only then: it is not kept.
set -euo pipefail
build=${1:?usage: $0 BUILD_DIR OUT_DIR}
out=${2:?usage: $0 BUILD_DIR OUT_DIR}
mkdir -p "$out"

update() { # OPTIONS...: updates of Qwen3-4B on one GPU
  mpirun -np 2 --bind-to none "$build/awex-colocate" update --model preset:qwen3-4b \
    --optimizer adamw "$@"
}

"$build/tests/gpu/kernel_bench" >"$out/kernels.txt"
update --versions 1 >/dev/null
update --versions 3 --kv-cache 8GB >"$out/update.txt"
update --versions 3 --kv-cache 8GB --verify off >"$out/update-verify-off.txt"
update --versions 2 --kv-cache 1GB --no-offload >"$out/update-no-offload.txt"
