#!/usr/bin/env bash
# Compares the Megatron layout with megatron-core itself, on the CPU: names and shapes of every
# rank's weights, and logits of the checkpoint that the layout makes of them. By hand: installs
# PyTorch, megatron-core and transformers (6 GB) in build-megatron/, for which it needs Python 3.12
# (AWEX_PYTHON312=PROGRAM, else python3.12). With --write it also renews the
# tables in tests/layout/engine_tables/ that the ordinary tests read. Other options go to
# tests/megatron/against_engine.py (--only MODEL).
source "$(dirname "$0")/common.sh"

# Fixed, so that a failure is ours.
packages=(megatron-core==0.19.2 torch==2.15.0 transformers==5.23.0 safetensors einops)
tables=tests/layout/engine_tables
options=()
for option in "$@"; do
  options+=("$option")
  [[ $option != --write ]] || options+=("$tables")
done

# megatron-core 0.19 is for Python 3.12 and newer; Debian 12 has 3.11.
python=${AWEX_PYTHON312:-python3.12}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  die "$python is no Python 3.12 or newer, which megatron-core 0.19 needs" \
    "install one (pyenv install 3.12) and name it: AWEX_PYTHON312=/path/to/python3.12 $0"

scripts/install-packages.sh

mkdir -p build-megatron
base_python=$python
python=$PWD/build-megatron/python/bin/python
if [[ $(cat build-megatron/installed 2>/dev/null) != "${packages[*]}" ]]; then
  step "installing ${packages[*]} in build-megatron/"
  "$base_python" -m venv --clear build-megatron/python
  "$python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" </dev/null ||
    die "cannot install ${packages[*]} into build-megatron/python" \
      "see pip's message above; they come from PyPI"
  echo "${packages[*]}" >build-megatron/installed
fi

step "building layout_tool"
cmake -S . -B build-megatron/cmake -G Ninja -DAWEX_CUDA=OFF -DAWEX_TESTS=ON
cmake --build build-megatron/cmake --target layout_tool

step "comparing with megatron-core"
PYTHONWARNINGS=ignore "$python" tests/megatron/against_engine.py \
  --layout-tool build-megatron/cmake/tests/layout/layout_tool --models "$tables/models" "${options[@]}"
