#!/usr/bin/env bash
# Builds and runs every test that needs no GPU. Installs what is missing.
#   scripts/test.sh [--preset release|cpu|asan|tsan] [--build-only] [-DNAME=VALUE ...]
# Results also go to tests.xml (JUnit) in the build directory.
source "$(dirname "$0")/common.sh"

preset=release
definitions=()
build_only=0
while (($# > 0)); do
  case "$1" in
    --preset)
      preset=${2:-}
      [[ $preset =~ ^(release|cpu|asan|tsan)$ ]] ||
        die "--preset '$preset' is not one of release, cpu, asan, tsan"
      shift 2
      ;;
    --build-only) build_only=1; shift ;;
    -D?*) definitions+=("$1"); shift ;;
    *) die "unknown option '$1'" "usage: $0 [--preset release|cpu|asan|tsan] [--build-only] [-DNAME=VALUE ...]" ;;
  esac
done
build=build
[[ $preset == release ]] || build=build-$preset

scripts/install-packages.sh

# The independent readers and writers of safetensors that tests compare with.
python=$PWD/build-python/bin/python
if ! "$python" -c 'import numpy, safetensors, wheel' 2>/dev/null; then
  step "preparing build-python (numpy, safetensors, and what packs the wheel)"
  python3 -m venv --clear build-python
  "$python" -m pip install --quiet --disable-pip-version-check numpy safetensors 'setuptools>=70.1' wheel </dev/null ||
    die "cannot install numpy and safetensors into build-python" \
      "see pip's message above; they come from PyPI"
fi

step "building ($preset) in $build/"
cmake --preset "$preset" -DAWEX_TESTS=ON "-DAWEX_PYTHON=$python" "${definitions[@]}"
cmake --build --preset "$preset"
if ((build_only)); then exit; fi

step "testing ($preset)"
ctest --preset "$preset" --parallel "$(nproc)" --output-junit "$PWD/$build/tests.xml" </dev/null
