"""The examples of README.md and of the guide, run as they stand there, over a tiny model in the place of the demo's."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GUIDE, CORPUS, LIVING, CLIENT, EVALUATING = (
    "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL))
    for name in ("gradients.md", "corpus.md", "index.md", "client.md", "evaluating.md")
)
LIBRARY, SERVICE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MEASURED = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "evaluating.md").read_text(), re.DOTALL)[0]
(COMMANDS,) = (block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "bergson " in block)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    demo = tmp_path / ".cache" / "bergson" / "demo" / "people-400-seed-0"
    tiny.save_model(demo / "model")
    (demo / "corpus").mkdir()
    rows = [{"id": f"doc-{k}", "text": text, "fact": f"fact-{k}"} for k, text in enumerate(tiny.texts(20))]
    (demo / "corpus" / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"prompt": row["text"][:6], "completion": row["text"][6:], "fact": row["fact"]} for row in rows]
    (demo / "corpus" / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return tmp_path


def run(home: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        command,
        cwd=home,
        env={**os.environ, "HOME": str(home), "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_library_example_gives_a_projected_gradient_for_each_layer(home: Path):
    assert run(home, sys.executable, "-c", LIBRARY).count("(1, 16, 16)") == 8


def test_the_guides_examples_run_one_after_the_other(home: Path):
    numbers, found, mixing, *_, shards, estimate = run(home, sys.executable, "-c", GUIDE).splitlines()
    assert numbers.split()[0] == str(8 * 16 * 16)
    assert len(re.findall(r"'\d+'", found)) == 3
    assert 0 < float(mixing) < 1
    assert shards == "1"
    assert len([float(number) for number in estimate.split()]) == 4


def test_the_examples_of_a_whole_corpus_run_one_after_the_other(home: Path):
    chosen, totals, odd, groups = run(home, sys.executable, "-c", CORPUS).splitlines()
    assert len(re.findall(r"'doc-\d+'", chosen)) == len(re.findall(r"'doc-\d+'", odd)) == 5
    assert totals.count("'sum'") == 3
    assert len(re.findall(r"\d+", groups)) == 5
    assert (home / "scores.parquet").is_file()


def test_the_examples_of_a_living_index_run_one_after_the_other(home: Path):
    assert run(home, sys.executable, "-c", LIVING).split() == ["2", "1", "new-1", "True", "True"]


def test_the_examples_of_the_evaluation_run_one_after_the_other(home: Path):
    demo, _, commands = MEASURED.replace("\\\n", " ").partition("\n")
    commands = commands.replace("$demo", demo.partition("=")[2].replace("~", str(home))).strip().splitlines()
    build, measure = (shlex.split(command)[1:] for command in commands)  # in one process: each loads torch
    once = "import sys; from service.cli import app; app({!r}, standalone_mode=False)\n"
    said = run(home, sys.executable, "-c", once.format(["build", *build]) + once.format(measure) + EVALUATING)
    assert "20 documents" in said and "queries; 95 % intervals in brackets" in said
    assert json.loads((home / "people.json").read_text())["methods"].keys() == {
        "index",
        "random",
        "bm25",
        "gold",
    }
    assert re.fullmatch(r"Retrieval\(mrr=.*\) log_probability=Interval\(.*\).*", said.splitlines()[-1])


def test_the_commands_build_an_index_and_ask_it(home: Path):
    said = run(home, "sh", "-ec", COMMANDS)
    assert "20 documents" in said
    assert len(re.findall(r"doc-\d", said)) == 3


def test_the_service_example_builds_over_http_and_prints_the_answer(home: Path, start):
    url = start(allowed_roots=home / ".cache").url
    said = run(home, sys.executable, "-c", SERVICE.replace("http://127.0.0.1:8000", url))
    assert "stage='done'" in said
    assert [line.split()[0] for line in said.splitlines()[-3:]] == ["1", "2", "3"]


def test_the_examples_of_the_client_run_one_after_the_other(home: Path, start):
    url = start(allowed_roots=home / ".cache").url
    said = run(home, sys.executable, "-c", CLIENT.replace("http://127.0.0.1:8000", url)).splitlines()
    assert said[0].startswith("queued") and any(line.startswith("succeeded done") for line in said)
    assert "20 rows" in said and any(line.startswith("409 index_exists") for line in said)
    assert said[-7:-4] == [line for line in said if re.match(r"[123] -?\d", line)]
    assert said[-4:-2] == ["Berin Birchall has retired.", "people"]
    assert [line.rsplit(" ", 1)[0] for line in said[-2:]] == ["Berin Birchall", "Ada Lovelace"]
