#!/usr/bin/env bash
# scripts/lint.sh formats the C++ code in place. scripts/lint.sh --check changes nothing and fails on:
# format, forbidden includes, names where roles are to be read, headers that do not compile alone,
# clang-tidy, shellcheck, Python syntax.
# clang-tidy reads what has changed since lint_base below; with --check --all it reads the whole tree.
source "$(dirname "$0")/common.sh"

# Other versions of these tools format and warn differently.
format_tool=clang-format-14
tidy_tool=clang-tidy-14

tracked() { git ls-files --cached --others --exclude-standard -- "$@"; }

formatted_files() { tracked '*.hpp' '*.cpp' '*.cu' '*.cuh' '*.h'; }

check_format() { formatted_files | xargs "$format_tool" --dry-run --Werror; }

# Prints where FILES include project headers that do not match ALLOWED, a regular expression.
beyond() {
  local allowed=$1
  shift
  grep -rnE '^ *# *include "' "$@" | grep -vE "\"($allowed)"
}

# Prints where FILES include MPI, CUDA or NCCL; with the rule above that bounds what they see
# indirectly, too.
beyond_host_code() { grep -rnE '^ *# *include *[<"](mpi|cuda|nccl|nvml)' "$@"; }

check_layers() {
  local found=0
  if beyond 'base/.*' src/base; then found=1; fi
  if beyond '(base|model)/.*' src/model; then found=1; fi
  if beyond '(base|model|layout)/.*' src/layout; then found=1; fi
  if beyond '(base|model|layout|plan)/.*' src/plan; then found=1; fi
  if beyond '(base|memory)/.*' src/memory; then found=1; fi
  if beyond '(base|comm)/.*|memory/device.hpp' src/comm; then found=1; fi
  local room
  room='base/.*|model/(convert|digest|dtype).hpp|layout/block_scales.hpp|memory/.*|transfer/kernels/.*'
  if beyond "$room" src/transfer/kernels; then found=1; fi
  if beyond '(base|memory|comm|transfer/share)/.*' src/transfer/share; then found=1; fi
  room='(base|model|plan|memory|comm|transfer/(kernels|share|move))/.*|layout/trainer_scales.hpp'
  if beyond "$room" src/transfer/move; then found=1; fi
  if beyond '(base|model|layout|memory|transfer/(kernels|prove))/.*' src/transfer/prove; then found=1; fi
  if beyond '(base|model|layout|memory|transfer/kernels|transfer/prove|engine)/.*' src/engine; then found=1; fi
  if beyond '(base|model|layout|memory|transfer/kernels|engine|attach)/.*|awex_colocate.h' src/attach; then found=1; fi
  if beyond '(base|model|layout|plan|memory|comm|transfer|engine|cycle)/.*' src/cycle; then found=1; fi
  if beyond '(base|model|cycle|comm|serve)/.*|attach/attached_engines.hpp|engine/engine.hpp|memory/(region|device).hpp' src/serve; then found=1; fi
  room='(base|memory|comm|transfer/share|cycle|doctor)/.*|transfer/move/nccl_library.hpp'
  if beyond "$room" src/doctor; then found=1; fi
  if beyond '(base|model|cycle|serve|doctor|cli)/.*|(comm/signals|memory/device|plan/plan_copies).hpp' src/cli; then found=1; fi
  # What plays a role is an Engine; the built-in ones are made by their factory.
  if grep -rniE 'stand_?in' src/cycle src/serve src/cli; then found=1; fi
  if beyond_host_code src/base src/model src/layout src/plan src/attach src/cycle src/serve src/doctor src/cli; then found=1; fi
  if ((found)); then printf 'the folders above must not know these headers: docs/design.md\n' >&2; fi
  return "$found"
}

# What a tensor is for is asked of its role (model/tensor_role.hpp); only model/ looks at names.
check_roles() {
  local folders=(src/layout src/plan src/transfer src/engine src/cycle)
  if grep -rnE 'name\.(ends_with|starts_with|find|rfind|substr|compare)\(' "${folders[@]}" ||
    grep -rnE '(catalogue|held|model)_?(\(\))?(\.|->)(find|index_of)\(' "${folders[@]}"; then
    printf "these look at a tensor's name: ask its role\n" >&2
    return 1
  fi
}

# A linker keeps one of two inline functions of the same name, silently: classes are named once.
check_class_names() {
  local twice
  twice=$(tracked 'src/*.hpp' | xargs grep -hoP '^(class|struct) \K\w+(?= (final )?(:|\{)|$)' | sort | uniq -d)
  if [[ -z $twice ]]; then return; fi
  tracked 'src/*.hpp' | xargs grep -nE "^(class|struct) ($(paste -sd'|' <<<"$twice")) "
  printf 'two headers of src/ have a class of the same name: rename one\n' >&2
  return 1
}

has_cuda() { command -v nvcc >/dev/null; }

# Headers that cannot be compiled without the CUDA Toolkit.
needs_cuda() { grep -qE '^#include <(cuda|nccl|nvml)' "$1"; }

compile_alone() {
  local cuda=()
  if has_cuda; then cuda=(-isystem "$(dirname "$(command -v nvcc)")/../include"); fi
  # shellcheck disable=SC2046 # mpicxx prints several words
  g++ -std=c++20 -fsyntax-only -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion \
    -Werror -DOMPI_SKIP_MPICXX -Isrc -Iinclude -Itests $(mpicxx --showme:compile) "${cuda[@]}" -include "$1" -x c++ /dev/null
}

# A .cpp that begins with its own header shows, by being built, that the header compiles alone.
is_first_in_own_source() {
  local source=${1%.hpp}.cpp
  if [[ ! -e $source || $source == *cuda* || $source == *nccl* ]]; then return 1; fi
  [[ $(grep -m 1 '^#include' "$source") == "#include \"${1#*/}\"" ]]
}

check_headers() {
  local header files=()
  while read -r header; do
    if is_first_in_own_source "$header"; then continue; fi
    if has_cuda || ! needs_cuda "$header"; then files+=("$header"); fi
  done < <(tracked 'src/*.hpp' 'tests/*.hpp')
  export -f compile_alone has_cuda
  printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -I{} bash -c 'compile_alone {}'
}

# The commit since which changes are tidied: AWEX_LINT_BASE, or where this branch left origin/main. On
# main itself, as in CI, the newest of its commits that is older than HEAD by a day. Nothing where
# history does not reach back so far; then the whole tree is tidied.
lint_base() {
  local base head_time
  if [[ -n ${AWEX_LINT_BASE:-} ]]; then
    git rev-parse --verify --quiet "$AWEX_LINT_BASE^{commit}" ||
      die "AWEX_LINT_BASE '$AWEX_LINT_BASE' is no commit here"
    return
  fi
  base=$(git merge-base HEAD origin/main 2>/dev/null) || base=
  if [[ -n $base && $base != "$(git rev-parse HEAD)" ]]; then
    printf '%s\n' "$base"
    return
  fi
  head_time=$(git show --no-patch --format=%ct HEAD)
  git rev-list --first-parent --max-count=1 --before="$((head_time - 24 * 3600))" HEAD
}

# Which of the files on stdin to tidy, where not all: those that changed, and for every changed header
# those that include it, directly. All when what clang-tidy is told has changed.
changed_since() {
  local base=$1 changed
  changed=$(git diff --name-only "$base" -- && git ls-files --others --exclude-standard) || return 1
  python3 -c '
import re, sys
changed = set(sys.argv[1].splitlines())
everything = ".clang-tidy" in changed
for path in sys.stdin.read().splitlines():
    included = re.findall(r"^#include \"(.+)\"", open(path, encoding="utf-8").read(), re.MULTILINE)
    if everything or path in changed or any(f"src/{header}" in changed for header in included):
        print(path)' "$changed"
}

# Those to tidy now.
chosen_files() {
  local base=
  if ((!whole_tree)); then base=$(lint_base) || return 1; fi
  if [[ -z $base ]]; then
    tidied_files
  else
    tidied_files | changed_since "$base"
  fi
}

# The .cpp files of src/ that this machine can build; .cu is beyond clang-tidy 14 under CUDA 13.
tidied_files() {
  python3 - <<'EOF'
import json, os
for entry in json.load(open("build-tidy/compile_commands.json")):
    path = os.path.relpath(entry["file"])
    if path.startswith("src/") and path.endswith(".cpp"):
        print(path)
EOF
}

check_tidy() {
  local log=build-tidy/configure.log
  mkdir -p build-tidy
  cmake --preset tidy >"$log" 2>&1 || { cat "$log"; return 1; }
  local files
  files=$(chosen_files) || return 1
  printf '%d of %d files\n' "$(grep -c . <<<"$files" || true)" "$(tidied_files | wc -l)" >&2
  xargs -r scripts/tidy.py build-tidy "$tidy_tool" <<<"$files"
}

check_shell() { tracked '*.sh' '*.sbatch' .ci/run | xargs shellcheck; }

check_python() {
  tracked '*.py' | xargs -r python3 -c '
import sys
for path in sys.argv[1:]:
    compile(open(path, encoding="utf-8").read(), path, "exec")'
}

whole_tree=0
if [[ ${1:-} == --check && ${2:-} == --all ]]; then whole_tree=1; fi
case "${1:-}" in
  "") formatted_files | xargs "$format_tool" -i ;;
  --check)
    failed=()
    for check in format layers roles class_names shell python headers tidy; do
      step "$check"
      "check_$check" || failed+=("$check")
    done
    if ((${#failed[@]} > 0)); then
      die "lint failed: ${failed[*]}" "scripts/lint.sh formats; the rest is explained above"
    fi
    step "lint: nothing found"
    ;;
  *) die "unknown option '$1'" "usage: $0 [--check [--all]]" ;;
esac
