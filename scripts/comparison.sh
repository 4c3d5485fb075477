# What the comparisons with engines and transformers share; sourced by them, from the root of the
# repository.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Dies unless AWEX_PYTHON312, or python3.12, is Python 3.12 or newer, which WHO needs; Debian 12 has
# 3.11. Sets base_python to it.
need_python312() {
  base_python=${AWEX_PYTHON312:-python3.12}
  "$base_python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
    die "$base_python is no Python 3.12 or newer, which $1 needs" \
      "install one (pyenv install 3.12) and name it: AWEX_PYTHON312=/path/to/python3.12 $0"
}

# Makes FOLDER/python of base_python once and runs `pip install` with the words of each further
# argument, in turn; again when one of them changes. Sets python to its interpreter.
prepare_python() {
  local folder=$1 words
  shift
  python=$PWD/$folder/python/bin/python
  if [[ $(cat "$folder/installed" 2>/dev/null) == "$*" ]]; then return; fi
  step "installing in $folder/: $*"
  mkdir -p "$folder"
  "$base_python" -m venv --clear "$folder/python"
  for words in "$@"; do
    # shellcheck disable=SC2086 # several words
    "$python" -m pip install --quiet --disable-pip-version-check $words </dev/null ||
      die "cannot install $words into $folder/python" "see pip's message above; they come from PyPI"
  done
  echo "$*" >"$folder/installed"
}

# Builds TARGET in FOLDER/cmake.
build_in() {
  step "building $2"
  cmake -S . -B "$1/cmake" -G Ninja -DAWEX_CUDA=OFF -DAWEX_TESTS=ON
  cmake --build "$1/cmake" --target "$2"
}

# Compares our layouts with those of ENGINE (a folder of tests/) in build-ENGINE/; --write of the
# options gets the place of the tables.
compare_layouts() {
  local engine=$1 tables=tests/layout/engine_tables option options=()
  shift
  for option in "$@"; do
    options+=("$option")
    [[ $option != --write ]] || options+=("$tables")
  done
  build_in "build-$engine" layout_tool
  step "comparing with $engine"
  PYTHONWARNINGS=ignore "$python" "tests/$engine/against_engine.py" --models "$tables/models" \
    --layout-tool "build-$engine/cmake/tests/layout/layout_tool" "${options[@]}"
}
