#!/usr/bin/env bash
# Builds both backends and runs the tests that need a GPU, on a machine that has one. Fails when no
# GPU is found or when every test was skipped.
source "$(dirname "$0")/common.sh"
(($# == 0)) || die "unknown option '$1'" "usage: $0"

(($(gpu_count) > 0)) || die "no GPU: nvidia-smi lists none" \
  "run this on a machine with an NVIDIA driver; scripts/test.sh needs no GPU"

scripts/install-packages.sh
step "building (cuda) in build-cuda/"
cmake --preset cuda
cmake --build --preset cuda

step "testing (cuda)"
results=$PWD/build-cuda/tests.xml
ctest --preset cuda --output-junit "$results" </dev/null

ran=$(grep -c 'status="run"' "$results" || true)
((ran > 0)) || die "no GPU test ran: all of them were skipped" \
  "ctest --preset cuda --verbose shows each test's reason"
