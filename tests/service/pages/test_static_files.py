"""The pages load nothing from other hosts, have no inline script and never parse text as HTML."""

import gzip
import hashlib
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import service
from service.http.packaged_files import PackagedFiles

STATIC = Path(service.__file__).parent / "static"
FOREIGN_FOLDERS = {"swagger", "vendor"}
OWN_FILES = sorted(
    path
    for path in STATIC.rglob("*")
    if path.is_file() and path.relative_to(STATIC).parts[0] not in FOREIGN_FOLDERS
)
OWN_SCRIPTS = [path for path in OWN_FILES if path.suffix == ".js"]
MAX_EXPLORER_BYTES = 150_000
ASSET = re.compile(r"""(?:href|src)=["']((?:static/|openapi)[^"'#]+)["']""")
IMPORT = re.compile(r"""from "([^"]+)";""")
PATHS = ("/", "/docs")


@pytest.fixture(params=PATHS)
def page(client: TestClient, request: pytest.FixtureRequest) -> str:
    response = client.get(request.param)
    assert response.headers["content-type"].startswith("text/html")
    return response.text


def test_no_page_names_an_external_address(page: str) -> None:
    assert not re.findall(r"(?i)https?:|//\w|@import|data:", page)


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: path.name)
def test_our_assets_name_no_external_address(path: Path) -> None:
    text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"(?i:https?:)|@import|\burl\(|['\"]//\w", text)


def test_the_vendored_style_loads_nothing_from_elsewhere() -> None:
    style = (STATIC / "swagger" / "swagger-ui.css").read_text()
    targets = re.findall(r"url\(\s*['\"]?([^)'\"]{0,20})", style)
    assert all(target.startswith("data:") for target in targets)
    assert "@import" not in style


def test_every_asset_of_a_page_is_served(client: TestClient, page: str) -> None:
    assets = ASSET.findall(page)
    assert len(assets) >= 5
    for asset in assets:
        assert client.get(f"/{asset}").status_code == 200, asset


def test_every_module_that_a_script_imports_is_served(client: TestClient) -> None:
    for path in OWN_SCRIPTS:
        for name in IMPORT.findall(path.read_text()):
            target = (path.parent / name).resolve().relative_to(STATIC).as_posix()
            response = client.get(f"/static/{target}")
            assert response.status_code == 200, f"{path.name} imports {name}"
            assert "javascript" in response.headers["content-type"]


def test_every_module_of_ours_is_imported_by_another_one_or_by_a_page() -> None:
    imported = {
        (path.parent / name).resolve() for path in OWN_SCRIPTS for name in IMPORT.findall(path.read_text())
    }
    unused = {path for path in OWN_SCRIPTS if path.name not in ("main.js", "start.js")} - imported
    assert not unused


def test_the_explorer_announces_every_module_that_it_loads(client: TestClient) -> None:
    announced = set(
        re.findall(r'rel="modulepreload" href="static/[0-9a-f]{12}/([^"]+)"', client.get("/").text)
    )
    loaded, found = set(), {"explorer/main.js"}
    while found:
        name = found.pop()
        loaded.add(name)
        folder = (STATIC / name).parent
        imports = {(folder / target).resolve() for target in IMPORT.findall((STATIC / name).read_text())}
        found |= {path.relative_to(STATIC).as_posix() for path in imports} - loaded
    assert announced == loaded


def test_the_explorer_is_small_when_compressed(client: TestClient) -> None:
    page = client.get("/").text
    contents = [page.encode(), *(client.get(f"/{asset}").content for asset in set(ASSET.findall(page)))]
    assert sum(len(gzip.compress(content)) for content in contents) <= MAX_EXPLORER_BYTES


def test_files_are_sent_compressed_to_who_accepts_it_and_not_again_where_they_are_known(
    client: TestClient,
) -> None:
    path = "/static/explorer/main.js"
    compressed = client.get(path, headers={"Accept-Encoding": "gzip"})
    assert compressed.headers["content-encoding"] == "gzip"
    assert int(compressed.headers["content-length"]) < len(compressed.content)
    assert compressed.text == client.get(path, headers={"Accept-Encoding": "identity"}).text
    assert client.get(path, headers={"If-None-Match": compressed.headers["etag"]}).status_code == 304
    small = client.get("/static/favicon.svg", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers


def test_files_below_their_digest_are_kept_by_the_browser_and_others_are_asked_for_again(
    client: TestClient,
) -> None:
    found = re.search(r"static/([0-9a-f]{12})/", client.get("/").text)
    assert found
    kept = client.get(f"/static/{found[1]}/explorer/main.js")
    assert "immutable" in kept.headers["cache-control"]
    plain = client.get("/static/explorer/main.js")
    assert (plain.content, plain.headers["cache-control"]) == (kept.content, "no-cache")
    assert client.get(f"/static/{'0' * 12}/explorer/main.js").status_code == 404


def test_another_content_of_any_file_has_another_digest(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("1")
    first = PackagedFiles(tmp_path).digest
    assert PackagedFiles(tmp_path).digest == first
    (tmp_path / "a.js").write_text("2")
    assert PackagedFiles(tmp_path).digest != first


@pytest.mark.parametrize("path", PATHS)
def test_the_security_policy_allows_only_our_own_assets(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert not re.findall(r"https?:|\*|unsafe-eval", headers["content-security-policy"])
    assert policy["frame-ancestors"] == "'none'"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_security_policy_of_the_explorer_allows_nothing_inline(client: TestClient) -> None:
    assert "unsafe" not in client.get("/").headers["content-security-policy"]


def test_no_page_has_an_inline_script_style_or_handler(page: str) -> None:
    assert not re.findall(r"<script(?![^>]*\bsrc=)|<style", page)
    assert not re.findall(r"\son\w+=|javascript:|style=", page)


def test_our_scripts_never_make_html_of_text() -> None:
    scripts = "".join(path.read_text() for path in OWN_SCRIPTS)
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|eval\(|new Function",
        scripts,
        re.IGNORECASE,
    )


def test_only_one_module_names_the_vendored_library() -> None:
    naming = [path.name for path in OWN_SCRIPTS if "vendor/" in path.read_text()]
    assert naming == ["html.js"]


def test_the_vendored_library_is_the_file_that_its_readme_names() -> None:
    folder = STATIC / "vendor" / "htm"
    named = dict(
        re.findall(r"^\| `(\S+)` \| `([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.MULTILINE)
    )
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.js")}
    assert sums == named


def test_the_licences_of_vendored_files_are_next_to_them() -> None:
    names = {path.name for path in (STATIC / "swagger").iterdir()}
    assert {"LICENSE", "NOTICE", "README.md", "swagger-ui-bundle.js.LICENSE.txt"} <= names
    htm = {path.name for path in (STATIC / "vendor" / "htm").iterdir()}
    assert {"LICENSE-htm", "LICENSE-preact", "README.md"} <= htm
    assert not [name for name in names | htm if name.endswith(".map")]
