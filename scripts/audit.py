"""Looks for known vulnerabilities in the installed packages: `python -m scripts.audit [ADVISORIES]`, or `make audit`.

pip-audit asks https://osv.dev. On a machine that cannot reach it, give a copy of its database, ADVISORIES: the file
https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip. The exit status is 0 if no vulnerability is known, 1 if
one is, and 2 if nothing was compared.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


def main() -> None:
    """Compares the installed packages with the advisories."""
    packages = {
        str(canonicalize_name(distribution.name)): distribution.version for distribution in distributions()
    }
    packages.pop("bergson-service", None)
    if len(sys.argv) > 1:
        findings = sorted(find_vulnerabilities(packages, Path(sys.argv[1])))
        summary = f"{len(packages)} packages compared, {len(findings)} findings"
        sys.stdout.write("\n".join([*findings, summary]) + "\n")
        sys.exit(1 if findings else 0)
    requirements = "".join(
        f"{name}=={Version(version).public}\n" for name, version in sorted(packages.items())
    )
    command = "-m pip_audit --vulnerability-service osv --strict --no-deps --disable-pip -r /dev/stdin"
    audit = subprocess.run(
        [sys.executable, *command.split()], input=requirements, text=True, stderr=subprocess.PIPE
    )
    if "ConnectionError" in audit.stderr:
        sys.stderr.write(
            "osv.dev does not answer: run `make audit ADVISORIES=all.zip` (see scripts/audit.py)\n"
        )
        sys.exit(2)
    sys.stderr.write(audit.stderr)
    sys.exit(audit.returncode)


def find_vulnerabilities(packages: Mapping[str, str], advisories: Path) -> Iterator[str]:
    """Yields a line for each advisory that affects a package.

    Args:
        packages: Versions of the packages by their normalized names.
        advisories: A zip file with an advisory in each JSON file, in the format of OSV
            (https://ossf.github.io/osv-schema/).
    """
    with zipfile.ZipFile(advisories) as archive:
        for name in archive.namelist():
            advisory = json.loads(archive.read(name))
            if "withdrawn" in advisory:
                continue
            for affected in advisory.get("affected", []):
                package = affected.get("package", {})
                version = packages.get(canonicalize_name(package.get("name", "")))
                if package.get("ecosystem") == "PyPI" and version and _is_affected(version, affected):
                    yield f"{package['name']} {version}: {advisory['id']} {advisory.get('summary', '')}"


def _is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    if version in affected.get("versions", []):
        return True
    installed = Version(version)
    for version_range in affected.get("ranges", []):
        if version_range["type"] != "ECOSYSTEM":
            continue
        is_in_range = False
        for event in sorted(version_range["events"], key=lambda event: _parse(next(iter(event.values())))):
            kind, boundary = next(iter(event.items()))
            if kind == "introduced" and installed >= _parse(boundary):
                is_in_range = True
            elif (kind == "fixed" and installed >= _parse(boundary)) or (
                kind == "last_affected" and installed > _parse(boundary)
            ):
                is_in_range = False
        if is_in_range:
            return True
    return False


def _parse(version: str) -> Version:
    try:
        return Version(version)
    except (
        InvalidVersion
    ):  # OSV writes "0" for "from the first version on", and some old versions are no PEP 440
        return Version("0")


if __name__ == "__main__":
    main()
