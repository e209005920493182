"""`make audit` finds what a database of advisories says about the installed packages."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from scripts.audit import find_vulnerabilities

ROOT = Path(__file__).parent.parent


def write_advisories(path: Path, *affected: dict[str, Any], **fields: Any) -> Path:
    """Writes a database of one advisory, in the format of OSV."""
    advisory = {"id": "PYSEC-1", "summary": "a hole", "affected": list(affected), **fields}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PYSEC-1.json", json.dumps(advisory))
    return path


def in_range(*events: dict[str, str]) -> dict[str, Any]:
    return {
        "package": {"ecosystem": "PyPI", "name": "Some_Package"},
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
    }


@pytest.mark.parametrize(
    ("version", "events", "is_affected"),
    [
        ("1.4", [{"introduced": "0"}, {"fixed": "1.5"}], True),
        ("1.5", [{"introduced": "0"}, {"fixed": "1.5"}], False),
        ("1.5", [{"introduced": "0"}, {"last_affected": "1.5"}], True),
        ("1.6", [{"introduced": "0"}, {"last_affected": "1.5"}], False),
        ("0.9", [{"introduced": "1.0"}], False),
        ("2.1", [{"introduced": "0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"fixed": "2.2"}], True),
        ("1.10", [{"introduced": "0"}, {"fixed": "1.9"}], False),
        ("2.0+cpu", [{"introduced": "2.0"}], True),
    ],
)
def test_a_version_in_an_advisory_s_range_is_a_finding(tmp_path, version, events, is_affected):
    advisories = write_advisories(tmp_path / "all.zip", in_range(*events))
    findings = list(find_vulnerabilities({"some-package": version}, advisories))
    assert findings == ([f"Some_Package {version}: PYSEC-1 a hole"] if is_affected else [])


def test_a_listed_version_is_a_finding_and_a_withdrawn_advisory_is_none(tmp_path):
    listed = {"package": {"ecosystem": "PyPI", "name": "some-package"}, "versions": ["1.0"]}
    packages = {"some-package": "1.0"}
    assert list(find_vulnerabilities(packages, write_advisories(tmp_path / "a.zip", listed)))
    withdrawn = write_advisories(tmp_path / "b.zip", listed, withdrawn="2026-01-01T00:00:00Z")
    assert not list(find_vulnerabilities(packages, withdrawn))


def test_the_command_fails_where_an_installed_package_is_affected(tmp_path):
    affected = {"package": {"ecosystem": "PyPI", "name": "pytest"}, "versions": [pytest.__version__]}
    advisories = write_advisories(tmp_path / "all.zip", affected)
    command = [sys.executable, "-m", "scripts.audit", str(advisories)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pytest" in result.stdout
