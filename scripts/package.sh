#!/usr/bin/env bash
# Builds build/awex-colocate and packs it as build/awex-colocate_VERSION_ARCHITECTURE.deb, for this
# machine's Debian or Ubuntu.
source "$(dirname "$0")/common.sh"
(($# == 0)) || die "unknown option '$1'" "usage: $0"

command -v dpkg-deb dpkg-shlibdeps >/dev/null || die "dpkg-deb or dpkg-shlibdeps is missing" \
  "apt-get install dpkg-dev"
scripts/install-packages.sh
step "building build/awex-colocate"
cmake --preset release >&2
cmake --build --preset release --target awex-colocate >&2
step "packing it"
cpack --config build/CPackConfig.cmake -G DEB -B build >&2
