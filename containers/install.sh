#!/usr/bin/env bash
# The recipes beside this run it in the image that runs, as root: installs what build.sh left in FOLDER.
#   install.sh FOLDER
set -euo pipefail
folder=${1:?names the folder}

export DEBIAN_FRONTEND=noninteractive
mapfile -t packages <"$folder/packages"
apt-get update -qq
apt-get install -qq -y --no-install-recommends "$folder"/awex-colocate_*.deb "${packages[@]}"
rm -rf /var/lib/apt/lists/*
install -D -m 644 -t /usr/share/awex-colocate "$folder"/awex_colocate-*.whl
