#!/usr/bin/env bash
# examples/torch_rl/run.py with the package and library of this repository: run.sh [BUILD_DIR] [OPTIONS OF run.py]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build
if (($# > 0)) && [[ $1 != -* ]]; then
  build=$(cd "$1" && pwd)
  shift
fi
export PYTHONPATH=$root/python/src${PYTHONPATH:+:$PYTHONPATH}
export AWEX_COLOCATE_LIBRARY=${AWEX_COLOCATE_LIBRARY:-$build/libawex_colocate.so}
exec "${PYTHON:-python3}" "$root/examples/torch_rl/run.py" --program "$build/awex-colocate" "$@"
