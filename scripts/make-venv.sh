#!/bin/sh
# make-venv.sh PYTHON DIRECTORY
#
# A virtual environment with a working pip. One that is there and works is kept; what an interrupted run or a
# removed Python left behind is made again.
set -eu
python=$1
venv=$2

# venv writes bin/activate last, after pip is in place.
if [ -f "$venv/bin/activate" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        exit 0
    fi
    if "$venv/bin/python" -m ensurepip >/dev/null 2>&1; then
        exit 0
    fi
fi

if ! version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null); then
    echo "Python 3.11 or later is needed; '$python' is ${version:-not there or does not start}." >&2
    echo "Install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) or name another:" >&2
    echo "    make PYTHON=/path/to/python3.12 …" >&2
    exit 1
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "'$python' comes without its module ensurepip, which makes virtual environments."
    if ! sh "$(dirname "$0")/system-packages.sh" "python$version-venv" || ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo "Install the package python$version-venv (Debian, Ubuntu) and start again." >&2
        exit 1
    fi
fi

if [ -e "$venv" ]; then
    echo "$venv is not whole; making it again."
    rm -rf "$venv"
fi
"$python" -m venv "$venv"
