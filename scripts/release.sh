#!/bin/sh
# release.sh PYTHON
#
# Builds the distributions into dist/ and checks them: their metadata, and that the wheel works in an environment of its
# own, away from this checkout, where it runs the demo. PYTHON is an interpreter with the packages `build` and `twine`.
# TORCH_INDEX=URL says where torch comes from.
set -eu
python=$1
root=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist
"$python" -m build --outdir dist .
"$python" -m twine check --strict dist/*

echo 'Trying the wheel in an environment of its own. This takes some minutes.'
"$python" -m venv "$work/venv"
if [ -n "${TORCH_INDEX:-}" ]; then
    "$work/venv/bin/pip" install --quiet --constraint constraints.txt --no-deps --index-url "$TORCH_INDEX" torch
fi
"$work/venv/bin/pip" install --quiet --constraint constraints.txt dist/*.whl
cd "$work"
"$work/venv/bin/python" - <<'CODE'
import bergson_core

for name in bergson_core.__all__:
    getattr(bergson_core, name)
print(f"bergson-service {bergson_core.__version__}: {len(bergson_core.__all__)} public names, all there")
CODE
"$work/venv/bin/bergson" demo --exit
ls -l "$root/dist"
