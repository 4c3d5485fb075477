#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks (Debian 12, Ubuntu 24.04).
# With --lint also what scripts/lint.sh needs; with --package what scripts/package.sh needs; with --slurm a
# Slurm, without which its test is skipped, and whose services Debian starts where there is systemd.
# Changes nothing when nothing is missing.
source "$(dirname "$0")/common.sh"

packages=(g++ cmake ninja-build pkg-config python3 python3-venv
  libopenmpi-dev openmpi-bin libhwloc-dev libcli11-dev libfmt-dev nlohmann-json3-dev doctest-dev
  iproute2)
for option in "$@"; do
  case "$option" in
    --lint) packages+=(clang-14 clang-format-14 clang-tidy-14 libclang-rt-14-dev shellcheck git) ;;
    --package) packages+=(dpkg-dev file) ;;
    --slurm) packages+=(munge slurm-wlm) ;;
    *) die "unknown option '$option'" "usage: $0 [--lint] [--package] [--slurm]" ;;
  esac
done

if ! have apt-get dpkg-query; then
  die "cannot install packages: this system has no apt-get" \
    "install these by hand, then run cmake yourself (see README.md): ${packages[*]}"
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || status=
  [[ $status == installed ]] || missing+=("$package")
done

if ((${#missing[@]} > 0)); then
  as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "cannot install ${missing[*]}: neither root nor sudo" \
      "as root: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  step "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq </dev/null ||
    die "cannot refresh the package lists: apt-get update failed" \
      "see apt's message above; check network and /etc/apt/sources.list*"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -qq -y --no-install-recommends "${missing[@]}" </dev/null ||
    die "cannot install ${missing[*]}: apt-get install failed" "see apt's message above"
fi

cmake_version=$(cmake --version | awk 'NR == 1 { print $3 }')
if [[ $(printf '%s\n' 3.25 "$cmake_version" | sort -V | head -n 1) != 3.25 ]]; then
  die "cmake $cmake_version at $(command -v cmake) is too old: 3.25 or newer is needed" \
    "Debian 12 and Ubuntu 24.04 have it; remove the older one from PATH"
fi
