#!/usr/bin/env bash
# Runs the README's two commands in a minimal Debian 12 that has nothing installed, to find what a
# newcomer's machine lacks. By hand and as root; needs debootstrap and about 4 GB in TMPDIR. Takes
# package sources, proxies, certificates and pip's settings from this machine. Tests HEAD.
source "$(dirname "$0")/common.sh"

((EUID == 0)) || die "debootstrap and chroot need root" "run: sudo $0"
have debootstrap unshare git || die "debootstrap, unshare or git is missing" \
  "apt-get install debootstrap util-linux git"

# In a mount namespace of its own nothing can stay mounted, however this script ends.
if [[ ${AWEX_FRESH_NAMESPACE:-} != 1 ]]; then
  AWEX_FRESH_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
fi

# The fresh root is bookworm, whatever this machine is; its own sources serve only a bookworm.
# shellcheck disable=SC2016 # apt-get expands it
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Created-By: Packages' |
  head -n 1)
[[ -n $mirror ]] || mirror=http://deb.debian.org/debian

root=$(mktemp -d)
chmod 755 "$root" # apt downloads as a user of its own
cleanup() {
  umount --recursive --lazy "$root"/{proc,sys,dev} 2>/dev/null || true
  # Not a byte outside the fresh root may go, should an unmount have failed.
  rm -rf --one-file-system "$root"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

step "minimal Debian 12 in $root"
debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror" \
  >"$root.log" 2>&1 || { tail -n 20 "$root.log" >&2; die "debootstrap failed" "see $root.log"; }
rm "$root.log"

if [[ $(. /etc/os-release && echo "${VERSION_CODENAME:-}") == bookworm ]]; then
  rm -f "$root/etc/apt/sources.list"
  cp -aT /etc/apt "$root/etc/apt"
fi
mkdir -p "$root/etc/ssl/certs" "$root/usr/local/share/ca-certificates"
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
  if [[ -e $file ]]; then cp -L "$file" "$root$file"; fi
done

mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"

step "cloning HEAD"
git clone --quiet --no-hardlinks . "$root/root/awex-colocate"

environment=(HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
while read -r variable; do
  environment+=("$variable=${!variable}")
done < <(compgen -e | grep -E '^(PIP_.*|SSL_CERT_FILE|REQUESTS_CA_BUNDLE)$|_(proxy|PROXY)$' || true)

fresh() {
  step "in the fresh root: $*"
  env -i "${environment[@]}" chroot "$root" sh -c 'cd /root/awex-colocate && exec "$@"' sh "$@" \
    </dev/null
}
fresh scripts/quickstart.sh
fresh scripts/test.sh
step "both commands succeed on a fresh machine"
