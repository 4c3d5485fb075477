#!/usr/bin/env bash
# Compares the Megatron layout with megatron-core itself, on the CPU: names and shapes of every
# rank's weights, and logits of the checkpoint that the layout makes of them. By hand: installs
# PyTorch, megatron-core and transformers (6 GB) in build-megatron/, for which it needs Python 3.12
# (AWEX_PYTHON312=PROGRAM, else python3.12). With --write it also renews the
# tables in tests/layout/engine_tables/ that the ordinary tests read. Other options go to
# tests/megatron/against_engine.py (--only MODEL).
source "$(dirname "$0")/comparison.sh"

need_python312 "megatron-core 0.19"
scripts/install-packages.sh
# Fixed, so that a failure is ours.
prepare_python build-megatron \
  "megatron-core==0.19.2 torch==2.15.0 transformers==5.23.0 safetensors einops"
compare_layouts megatron "$@"
