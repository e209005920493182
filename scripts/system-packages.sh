#!/bin/sh
# system-packages.sh PACKAGE...
#
# Installs packages of Debian or Ubuntu as root or through sudo without a password. Where that is not possible, or
# SYSTEM_PACKAGES=no forbids it, it says what to install and fails.
set -eu

missing=
for package in "$@"; do
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true) in
    *' installed') ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

refuse() {
    echo "Not installed:$missing. $1" >&2
    echo "Install them yourself, on Debian or Ubuntu: apt-get install$missing" >&2
    exit 1
}

[ "${SYSTEM_PACKAGES:-yes}" != no ] || refuse "SYSTEM_PACKAGES=no."
command -v apt-get >/dev/null 2>&1 || refuse "There is no apt-get here."
if [ "$(id -u)" = 0 ]; then
    as_root=
elif sudo -n true 2>/dev/null; then
    as_root='sudo -n'
else
    refuse "That takes root, or sudo without a password."
fi

apt() {
    # RUNLEVEL=1: a server that comes with a package is not started.
    $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}
echo "Installing system packages:$missing (SYSTEM_PACKAGES=no forbids it)"
# shellcheck disable=SC2086 # a list of names
apt update && apt install -y --no-install-recommends $missing || refuse "apt-get failed."
