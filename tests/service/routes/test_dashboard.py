"""The dashboard loads nothing from other hosts, has no inline script and never parses text as HTML."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import service

STATIC = Path(service.__file__).parent / "static"
OWN_FILES = sorted([*STATIC.glob("dashboard/*"), STATIC / "favicon.svg"])
ASSET = re.compile(r"""(?:href|src)=["']([^"'#]+)["']""")
IMPORT = re.compile(r"""from "(\./[^"]+)";""")


@pytest.fixture
def page(client: TestClient) -> str:
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    return response.text


def test_the_page_names_no_external_address(page: str) -> None:
    assert not re.findall(r"(?i)https?:|//\w|@import|data:", page)


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: path.name)
def test_our_assets_name_no_external_address(path: Path) -> None:
    text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"(?i)https?:|@import|url\(|['\"]//\w", text)


def test_the_vendored_style_loads_nothing_from_elsewhere() -> None:
    style = (STATIC / "swagger" / "swagger-ui.css").read_text()
    targets = re.findall(r"url\(\s*['\"]?([^)'\"]{0,20})", style)
    assert all(target.startswith("data:") for target in targets)
    assert "@import" not in style


def test_every_asset_of_the_page_is_served(client: TestClient, page: str) -> None:
    assets = ASSET.findall(page)
    assert len(assets) >= 5
    for asset in assets:
        assert client.get(f"/{asset}").status_code == 200, asset


def test_every_module_that_a_script_imports_is_served(client: TestClient) -> None:
    scripts = [path for path in OWN_FILES if path.suffix == ".js"]
    imports = {name for path in scripts for name in IMPORT.findall(path.read_text())}
    assert imports
    for name in imports:
        response = client.get(f"/static/dashboard/{name}")
        assert response.status_code == 200
        assert "javascript" in response.headers["content-type"]


def test_the_security_policy_allows_only_our_own_assets(client: TestClient) -> None:
    headers = client.get("/docs").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert not re.findall(r"https?:|\*|unsafe-eval", headers["content-security-policy"])
    assert policy["frame-ancestors"] == "'none'"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_has_no_inline_script_or_handler(page: str) -> None:
    assert not re.findall(r"<script(?![^>]*\bsrc=)", page)
    assert not re.findall(r"\son\w+=|javascript:|style=", page)


def test_our_scripts_never_make_html_of_text() -> None:
    scripts = "".join(path.read_text() for path in OWN_FILES if path.suffix == ".js")
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", scripts
    )


def test_the_root_redirects_to_the_page(client: TestClient) -> None:
    response = client.get("/")
    assert (response.status_code, response.url.path) == (200, "/docs")


def test_the_licences_of_vendored_files_are_next_to_them() -> None:
    names = {path.name for path in (STATIC / "swagger").iterdir()}
    assert {"LICENSE", "NOTICE", "README.md", "swagger-ui-bundle.js.LICENSE.txt"} <= names
    assert not [name for name in names if name.endswith(".map")]
