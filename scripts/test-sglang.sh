#!/usr/bin/env bash
# Compares the SGLang layout with SGLang itself, on the CPU: names, shapes, dtypes and every element
# of each rank's weights, before and after SGLang's post-load step, as on a Hopper GPU. Its kernels
# are stubs. By hand: needs Python 3.12 (or the interpreter that AWEX_PYTHON312 names) and installs
# SGLang and PyTorch (6 GB) in build-sglang/.
# With --write it also renews the tables in tests/layout/engine_tables/ that the ordinary tests read.
# Other options go to tests/sglang/against_engine.py (--only MODEL).
source "$(dirname "$0")/comparison.sh"

need_python312 "SGLang"
scripts/install-packages.sh
# Fixed, so that a failure is ours.
prepare_python build-sglang \
  "-r tests/sglang/requirements.txt torch==2.14.1" \
  "--no-deps sglang==0.5.23"
compare_layouts sglang "$@"
