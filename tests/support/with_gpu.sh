#!/usr/bin/env bash
# Runs a command where there is a GPU, and skips (exit code 77) where there is none.
if [[ -z $(nvidia-smi -L 2>/dev/null) ]]; then
  echo "skipped: nvidia-smi lists no GPU"
  exit 77
fi
exec "$@"
