# What the scripts share; sourced by them, from the root of the repository.
# shellcheck shell=bash
set -euo pipefail

# Every script tells in its first comment what it does and takes.
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
  printf 'error: %s\n' "$1" >&2
  if (($# > 1)); then printf '  hint: %s\n' "$2" >&2; fi
  exit 1
}

# Whether all of these programs are there; command -v is content with one of them.
have() {
  local program
  for program in "$@"; do command -v "$program" >/dev/null || return 1; done
}

step() { printf '\n==> %s\n' "$*" >&2; }

# The toolkit's usual place is often not on PATH.
if ! command -v nvcc >/dev/null && [[ -x /usr/local/cuda/bin/nvcc ]]; then
  PATH=$PATH:/usr/local/cuda/bin
fi

# Open MPI refuses to start as root unless told twice that this is meant.
if ((EUID == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# How many GPUs the driver offers.
gpu_count() {
  local list
  list=$(nvidia-smi --list-gpus 2>/dev/null) || list=
  grep -c '^GPU' <<<"$list" || true
}
