#!/usr/bin/env bash
# Writes anew what transformers itself saves of small models of each family, which families_test
# compares with the catalogue: config.json, and every tensor's name, shape and dtype. By hand: installs
# PyTorch and transformers (2 GB) in build-transformers/, for which it needs Python 3.10 or newer
# (AWEX_PYTHON312=PROGRAM, else python3). Options go to tests/model/against_transformers.py (--only NAME).
source "$(dirname "$0")/comparison.sh"

base_python=${AWEX_PYTHON312:-python3}
# Fixed, so that tables change when we change.
prepare_python build-transformers "torch==2.13.0 transformers==5.19.0 safetensors"

step "asking transformers"
PYTHONWARNINGS=ignore "$python" tests/model/against_transformers.py \
  --write tests/model/transformers_tables "$@"

build_in build-transformers model_test
step "comparing"
build-transformers/cmake/tests/model/model_test --test-case="*transformers saves*"
