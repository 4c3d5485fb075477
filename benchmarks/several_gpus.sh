#!/usr/bin/env bash
# The cycle on several GPUs: builds what is measured, runs everything, writes one table.
#
#   benchmarks/several_gpus.sh BUILD_DIR OUT_DIR [OPTIONS of several_gpus.py]
#
# BUILD_DIR must be configured; without OPTIONS all of 2, 4 and 8 GPUs that the machine has are used.
set -euo pipefail
build=${1:?usage: $0 BUILD_DIR OUT_DIR [OPTIONS]}
out=${2:?usage: $0 BUILD_DIR OUT_DIR [OPTIONS]}
shift 2

targets=(awex-colocate all_links disturbed_update)
if cmake --build "$build" --target help | grep -q nccl_limit; then targets+=(nccl_limit); fi
cmake --build "$build" --target "${targets[@]}"
exec python3 "$(dirname "$0")/several_gpus.py" "$build" "$out" "$@"
