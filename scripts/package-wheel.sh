#!/usr/bin/env bash
# Packs the Python package with the library inside as build/awex_colocate-VERSION-py3-none-PLATFORM.whl:
# one wheel for every Python from 3.10 on, of this machine's platform.
#   scripts/package-wheel.sh [--library FILE] [--out DIR] [--python PROGRAM]
# Without --library it builds build/libawex_colocate.so. PROGRAM has pip; default python3 or, where that has
# none, a virtual environment in build-python/.
source "$(dirname "$0")/common.sh"

library='' out=build python=''
while (($# > 0)); do
  case "$1" in
    --library) library=${2:?} ; shift 2 ;;
    --out) out=${2:?} ; shift 2 ;;
    --python) python=${2:?} ; shift 2 ;;
    *) die "unknown option '$1'" "usage: $0 [--library FILE] [--out DIR] [--python PROGRAM]" ;;
  esac
done

if [[ -z $library ]]; then
  scripts/install-packages.sh
  step "building build/libawex_colocate.so"
  cmake --preset release >&2
  cmake --build --preset release --target awex_colocate_engine >&2
  library=build/libawex_colocate.so
fi
[[ -r $library ]] || die "$library is no file" "--library names the built libawex_colocate.so"

if [[ -z $python ]]; then
  python=python3
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    python=build-python/bin/python
    [[ -x $python ]] || python3 -m venv build-python
  fi
fi

mkdir -p "$out"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
cp -r python/. LICENSE "$stage"
rm -rf "$stage"/build "$stage"/src/*.egg-info
install -m 755 "$library" "$stage/src/awex_colocate/libawex_colocate.so"
strip --strip-debug "$stage/src/awex_colocate/libawex_colocate.so"
# Other machines have a libfmt of another version, or none. The library looks beside itself, and not also in
# the places of this machine that it was linked from.
printf '%s\n' "file(RPATH_SET FILE \"$stage/src/awex_colocate/libawex_colocate.so\" NEW_RPATH \"\$ORIGIN\")" >"$stage/rpath.cmake"
cmake -P "$stage/rpath.cmake" >&2
while read -r needed; do
  install -m 755 "$needed" "$stage/src/awex_colocate/"
done < <(ldd "$library" | awk '/libfmt/ { print $3 }')
# The version names the commit, as the library's does: pip replaces one build by another.
version=$(python3 -c 'import ctypes, sys
build = ctypes.CDLL(sys.argv[1]).awex_build
build.restype = ctypes.c_char_p
print(build().decode())' "$stage/src/awex_colocate/libawex_colocate.so")
sed -i "s/^__version__ = .*/__version__ = \"$version\"/" "$stage/src/awex_colocate/_version.py"
step "packing it"
isolated=()
if "$python" -c 'import setuptools, wheel' 2>/dev/null ||
  "$python" -c 'import setuptools.command.bdist_wheel' 2>/dev/null; then
  isolated=(--no-build-isolation) # what is there suffices: nothing is fetched
fi
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps "${isolated[@]}" \
  --wheel-dir "$stage/packed" "$stage" </dev/null >&2
if [[ $out == build ]]; then rm -f build/awex_colocate-*.whl; fi # pip install build/awex_colocate-*.whl takes one
cp "$stage"/packed/awex_colocate-*.whl "$out"
for wheel in "$stage"/packed/*; do echo "$out/${wheel##*/}"; done
