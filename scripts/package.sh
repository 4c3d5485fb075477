#!/usr/bin/env bash
# Builds build/awex-colocate and packs it as build/awex-colocate_VERSION_ARCHITECTURE.deb, for this
# machine's Debian or Ubuntu. Installs what is missing.
#   scripts/package.sh [-DNAME=VALUE ...]
# Its Maintainer is the project, or with DEBEMAIL (and DEBFULLNAME) set who packs it.
source "$(dirname "$0")/common.sh"

for option in "$@"; do
  [[ $option == -D?* ]] || die "unknown option '$option'" "usage: $0 [-DNAME=VALUE ...]"
done

scripts/install-packages.sh --package
step "building build/awex-colocate"
cmake --preset release "$@" >&2
cmake --build --preset release --target awex-colocate awex_colocate_engine >&2

# dpkg-shlibdeps refuses these too, but says it of the last one, in many lines.
while read -r library; do
  dpkg-query --search "*/${library##*/}" >/dev/null 2>&1 ||
    die "cannot pack it: $library is of no package that the .deb could depend on" \
      "install it as a package (NVIDIA's repository has libnccl2), or pack the host backend alone: $0 -DAWEX_CUDA=OFF"
done < <(ldd build/awex-colocate | awk '$3 ~ /^\// { print $3 }')

step "packing it"
rm -f build/awex-colocate_*.deb
cpack --config build/CPackConfig.cmake -G DEB -B build >&2
ls build/awex-colocate_*.deb
