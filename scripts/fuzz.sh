#!/usr/bin/env bash
# Searches for inputs that break the readers of config.json, of safetensors headers, of checkpoints and
# of what clients and a resident job say to each other.
#   scripts/fuzz.sh [SECONDS]     for each reader; 60 by default
# Needs clang++-14 with libFuzzer. What it learns stays in build-fuzz/corpus and is used again; an input
# that breaks a reader is left as build-fuzz/crash-*.
source "$(dirname "$0")/common.sh"

seconds=${1:-60}
targets=(fuzz_config fuzz_safetensors fuzz_checkpoint fuzz_protocol)
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "'$seconds' is not a number of seconds" "usage: $0 [SECONDS]"
command -v clang++-14 >/dev/null ||
  die "there is no clang++-14" "install the packages clang-14 and libclang-rt-14-dev"

step "building in build-fuzz/"
cmake -S . -B build-fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++-14 -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DAWEX_CUDA=OFF -DAWEX_FUZZ=ON -DAWEX_SANITIZE=address,undefined,fuzzer-no-link >/dev/null
cmake --build build-fuzz --target "${targets[@]}"
python3 tests/fuzz/write_seeds.py build-fuzz/corpus

for target in "${targets[@]}"; do
  step "$target, $seconds seconds"
  "build-fuzz/tests/fuzz/$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 \
    -dict=tests/fuzz/json.dict -artifact_prefix=build-fuzz/ -print_final_stats=1 -verbosity=1 \
    "build-fuzz/corpus/$target" 2>"build-fuzz/$target.log" ||
    die "$target found an input that breaks the reader" "see build-fuzz/$target.log"
  grep '^stat::' "build-fuzz/$target.log" >&2
done
