#!/bin/sh
# make-venv.sh PYTHON DIRECTORY
#
# Makes a virtual environment with a working pip. An environment that works is kept; one that an interrupted run or a
# removed Python has left broken is made again.
set -eu
python=$1
venv=$2

# venv writes bin/activate last, after it has installed pip.
if [ -f "$venv/bin/activate" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        exit 0
    fi
    if "$venv/bin/python" -m ensurepip >/dev/null 2>&1; then
        exit 0
    fi
fi

if ! version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null); then
    echo "Python 3.11 or later is needed; '$python' is ${version:-missing or does not start}." >&2
    echo "Install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) or name another Python:" >&2
    echo "    make PYTHON=/path/to/python3.12 …" >&2
    exit 1
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "'$python' lacks the module ensurepip, which virtual environments need."
    if ! sh "$(dirname "$0")/system-packages.sh" "python$version-venv" || ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo "Install the package python$version-venv (Debian, Ubuntu) and try again." >&2
        exit 1
    fi
fi

if [ -e "$venv" ]; then
    echo "$venv is incomplete; making it again."
    rm -rf "$venv"
fi
"$python" -m venv "$venv"
