#!/usr/bin/env bash
# Compares the SGLang layout with SGLang itself, on the CPU: names, shapes, dtypes and every element
# of each rank's weights, before and after SGLang's post-load step, as on a Hopper GPU. Its kernels
# are stubs. By hand: needs Python 3.12 (or the interpreter that AWEX_PYTHON312 names) and installs
# SGLang and PyTorch (6 GB) in build-sglang/.
# With --write it also renews the tables in tests/layout/engine_tables/ that the ordinary tests read.
# Other options go to tests/sglang/against_engine.py (--only MODEL).
source "$(dirname "$0")/common.sh"

# Fixed, so that a failure is ours.
packages=(sglang==0.5.23 torch==2.14.1)
tables=tests/layout/engine_tables
options=()
for option in "$@"; do
  options+=("$option")
  [[ $option != --write ]] || options+=("$tables")
done

scripts/install-packages.sh

mkdir -p build-sglang
python=$PWD/build-sglang/python/bin/python
if [[ $(cat build-sglang/installed 2>/dev/null) != "${packages[*]}" ]]; then
  step "installing ${packages[*]} in build-sglang/"
  base=${AWEX_PYTHON312:-python3.12}
  command -v "$base" >/dev/null || die "this comparison needs Python 3.12: there is no $base" \
    "install it, or name one: AWEX_PYTHON312=PATH scripts/test-sglang.sh"
  "$base" -m venv --clear build-sglang/python
  install() {
    "$python" -m pip install --quiet --disable-pip-version-check "$@" </dev/null ||
      die "cannot install $* into build-sglang/python" "see pip's message above; they come from PyPI"
  }
  install -r tests/sglang/requirements.txt "${packages[1]}"
  install --no-deps "${packages[0]}"
  echo "${packages[*]}" >build-sglang/installed
fi

step "building layout_tool"
cmake -S . -B build-sglang/cmake -G Ninja -DAWEX_CUDA=OFF -DAWEX_TESTS=ON
cmake --build build-sglang/cmake --target layout_tool

step "comparing with SGLang"
PYTHONWARNINGS=ignore "$python" tests/sglang/against_engine.py \
  --layout-tool build-sglang/cmake/tests/layout/layout_tool --models "$tables/models" "${options[@]}"
