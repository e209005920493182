#!/bin/sh
# system-packages.sh PROGRAM=PACKAGE[,PACKAGE]...
#
# Installs the packages of Debian or Ubuntu whose program is not on this machine, as root or through sudo without a password. If neither is possible, or if
# SYSTEM_PACKAGES=no forbids it, the script prints what to install and fails.
set -eu

missing=
for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing="$missing $(echo "${pair#*=}" | tr ',' ' ')"
done
[ -n "$missing" ] || exit 0

refuse() {
    echo "These packages are missing:$missing. $1" >&2
    echo "Install them yourself; on Debian or Ubuntu: apt-get install$missing" >&2
    exit 1
}

[ "${SYSTEM_PACKAGES:-yes}" != no ] || refuse "SYSTEM_PACKAGES=no forbids installing them."
command -v apt-get >/dev/null 2>&1 || refuse "This machine has no apt-get."
if [ "$(id -u)" = 0 ]; then
    as_root=
elif sudo -n true 2>/dev/null; then
    as_root='sudo -n'
else
    refuse "Installing them takes root, or sudo without a password."
fi

apt() {
    # RUNLEVEL=1 keeps a package from starting the server that it contains.
    $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}
echo "Installing system packages:$missing (SYSTEM_PACKAGES=no prevents it)"
# shellcheck disable=SC2086 # $missing is a list of names.
apt update && apt install -y --no-install-recommends $missing || refuse "apt-get failed."
