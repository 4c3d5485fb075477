#!/usr/bin/env bash
# Writes anew what transformers itself saves of small models of each family, which families_test
# compares with the catalogue: config.json, and every tensor's name, shape and dtype. By hand: installs
# PyTorch and transformers (2 GB) in build-transformers/, for which it needs Python 3.10 or newer
# (AWEX_PYTHON312=PROGRAM, else python3). Options go to tests/model/against_transformers.py (--only NAME).
source "$(dirname "$0")/common.sh"

# Fixed, so that tables change when we change.
packages=(torch==2.13.0 transformers==5.19.0 safetensors)

mkdir -p build-transformers
python=$PWD/build-transformers/python/bin/python
if [[ $(cat build-transformers/installed 2>/dev/null) != "${packages[*]}" ]]; then
  step "installing ${packages[*]} in build-transformers/"
  "${AWEX_PYTHON312:-python3}" -m venv --clear build-transformers/python
  "$python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" </dev/null ||
    die "cannot install ${packages[*]} into build-transformers/python" \
      "see pip's message above; they come from PyPI"
  echo "${packages[*]}" >build-transformers/installed
fi

step "asking transformers"
PYTHONWARNINGS=ignore "$python" tests/model/against_transformers.py \
  --write tests/model/transformers_tables "$@"

step "comparing"
cmake -S . -B build-transformers/cmake -G Ninja -DAWEX_CUDA=OFF -DAWEX_TESTS=ON
cmake --build build-transformers/cmake --target model_test
build-transformers/cmake/tests/model/model_test --test-case="*transformers saves*"
