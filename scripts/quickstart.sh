#!/usr/bin/env bash
# From a fresh clone to a first report: installs what is missing, builds build/awex-colocate, writes
# a small checkpoint and hands its weights from a trainer to an inference engine, twice.
source "$(dirname "$0")/common.sh"
(($# == 0)) || die "unknown option '$1'" "usage: $0"

scripts/install-packages.sh
step "building build/awex-colocate"
cmake --preset release >&2
cmake --build --preset release --target awex-colocate >&2

# Two ranks on each GPU, one of each role; without GPUs the host backend takes any number.
ranks=4 tensor_parallel=2
gpus=$(gpu_count)
if ((gpus == 1)); then ranks=2 tensor_parallel=1; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$work/tiny-dense
build/awex-colocate checkpoint --preset tiny-dense --out "$model" >&2

run=(mpirun -np "$ranks" --oversubscribe --bind-to none build/awex-colocate update --model "$model"
  --trainer "megatron:tp=$tensor_parallel" --inference sglang:tp=1 --versions 2)
step "$gpus GPUs here: $ranks ranks"
printf '$ %s\n\n' "${run[*]}" >&2
"${run[@]}"
