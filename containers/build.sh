#!/usr/bin/env bash
# The recipes beside this run it in the image that builds, as root: puts into FOLDER what the image that
# runs installs, by install.sh: the Debian package, the wheel, and other packages in the very versions
# that were built with.
#   containers/build.sh FOLDER [-DNAME=VALUE ...]
source "$(dirname "$0")/../scripts/common.sh"
(($# > 0)) || die "no folder is named" "usage: $0 FOLDER [-DNAME=VALUE ...]"
folder=$1
shift

apt-get update -qq
apt-get install -qq -y --no-install-recommends ca-certificates git # for pip; for the version
scripts/package.sh "$@"
scripts/package-wheel.sh
mkdir -p "$folder"
cp build/awex-colocate_*.deb build/awex_colocate-*.whl "$folder"

# The package asks for some libnccl2, of which apt-get would take the newest: one for another CUDA.
dpkg-query --show --showformat='${Package}=${Version}\n' libnccl2 >"$folder/packages" 2>/dev/null || true
