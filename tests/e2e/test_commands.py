"""The command line as its user meets it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from bergson_core import build_index
from bergson_core.errors import InvalidInput
from bergson_core.indexing import estimate
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec
from bergson_core.schemas.results import Estimate
from bergson_core.storage.manifest import read_manifest
from service.cli import app, main
from tests import tiny
from tests.e2e.conftest import BERGSON, bergson, build_request, children_of, free_port

pytestmark = pytest.mark.e2e


def in_this_process(*command: object) -> str:
    """What a command prints that succeeds; for what needs no process of its own."""
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def here(monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `bergson`, in this process, which has loaded torch already; errors are said as a process says them."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["bergson", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())

    monkeypatch.setenv("COLUMNS", "160")  # of help; tables are as wide as the terminal was
    return run


def test_build_and_query_from_the_command_line(sources, here):
    index = sources / "facts"
    options = ("--model", sources / "model", "--dataset", sources / "documents.jsonl", "--projection_dim", 4)
    built = bergson(index, *options, "--id_column", "id")
    assert built.returncode == 0, built.stderr
    assert "40 documents" in built.stdout
    text = tiny.texts(40)[5]
    asked = ("query", index, "--prompt", text[:1], "--completion", text[1:], "--top-k", 1)
    assert text in " ".join(in_this_process(*asked).split())  # a table, as wide as the terminal
    answer = json.loads(in_this_process(*asked, "--json"))
    assert answer["results"][0]["prompt"] == text
    verified = json.loads(in_this_process(*asked, "--verify", 1, "--json"))
    assert verified["results"][0]["verified"]["own_log_probability"] < 0
    assert len(verified["verification"]["controls"]) == 3
    assert in_this_process(*asked, "--verify", 1).count("(random)") == 3
    shown = in_this_process(*asked, "--include", "tokens", "--include", "modules")
    assert text not in shown
    assert "gpt_neox.layers.1.mlp.dense_h_to_4h' +" in shown
    assert "40 documents" in in_this_process("build", index, *options, "--id_column", "id")
    other = here(index, *options)
    assert (other.returncode, "choose another directory" in other.stderr) == (1, True)


def test_an_index_is_measured_from_the_command_line(sources, tmp_path):
    columns = ColumnsSpec(id="id", metadata=("source",))
    build_index(BuildSpec.model_validate(build_request(sources, columns=columns)), sources / "facts")
    rows = [{"prompt": text[:9], "completion": text[9:], "source": "web"} for text in tiny.texts(4)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measures = ("--measure", "retrieval", "--measure", "lds", "--gold", "source", "--baseline", "bm25")
    training = (
        "--from_scratch",
        "--runs",
        10,
        "--epochs",
        1,
        "--least_steps",
        1,
        "--cache",
        tmp_path / "kept",
    )
    asked = ("evaluate", sources / "facts", "--queries", tmp_path / "queries.jsonl", *measures)
    shown = in_this_process(*asked, *training, "--output", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["methods"].keys() == {"index", "bm25", "gold"}
    assert f"{figures['methods']['index']['retrieval']['mrr']:.3f}" in shown
    assert f"{figures['methods']['gold']['lds']['mean']:+.3f} [" in shown
    wrong = CliRunner().invoke(app, [*map(str, asked), "--measure", "magic"])
    assert "magic" in str(wrong.exception)


def test_an_index_is_changed_and_verified_from_the_command_line(sources, here):
    columns = ColumnsSpec(id="id", metadata=("source",))
    build_index(BuildSpec.model_validate(build_request(sources, columns=columns)), sources / "facts")
    rows = [{"id": f"new-{k}", "text": text, "source": "x"} for k, text in enumerate(tiny.texts(5))]
    (sources / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    append = ("append", sources / "facts", "--dataset", sources / "more.jsonl")
    assert "45 documents, 5 added, generation 2" in in_this_process(*append)
    assert "added before" in in_this_process(*append)
    assert in_this_process("takedown", sources / "facts", "new-0", "doc-3").count("is taken down") == 2
    assert "43 documents" in in_this_process("compact", sources / "facts")
    assert "all as they were written" in in_this_process("verify", sources / "facts")
    path = next((sources / "facts" / "shards").glob("*/gradients.bin"))
    path.write_bytes(bytes(len(path.read_bytes())))
    failed = here("verify", sources / "facts")
    assert (failed.returncode, "was altered" in failed.stderr) == (1, True)


def test_a_dataset_is_read_as_a_stream_on_request(sources):
    index, options = sources / "facts", ("--projection_dim", "4", "--streaming")
    paths = ("--model", str(sources / "model"), "--dataset", str(sources / "documents.jsonl"))
    in_this_process("build", index, *paths, *options)
    built, asked = read_manifest(index), DatasetSpec(path=str(sources / "documents.jsonl"), streaming=True)
    assert (built.rows, built.spec.dataset) == (40, asked)


def test_an_estimate_takes_the_options_of_a_build_and_says_what_it_then_takes(sources, here, monkeypatch):
    source = ("--model", sources / "model", "--dataset", sources / "documents.jsonl", "--id_column", "id")
    options = (*source, "--projection_dim", 4, "--search", "rabitq", "--min_recall", 0.2)
    found = json.loads(in_this_process("estimate", *options, "--json"))
    in_this_process("build", sources / "facts", *options)
    manifest = read_manifest(sources / "facts")
    assert (found["documents"], found["tokens"]) == (manifest.rows, manifest.tokens)
    assert found["search"] == manifest.search.kind == "rabitq"
    assert found["size_bytes"]["total"] == manifest.total_bytes()
    assert manifest.spec.search.min_recall == 0.2
    with monkeypatch.context() as patched:  # the table is of what was found above
        patched.setattr(estimate, "estimate_build", lambda *_, **__: Estimate.model_validate(found))
        shown = in_this_process("estimate", *options)
    lines = {line.split()[0]: line.split()[1] for line in shown.splitlines() if line.strip()}
    assert {name: lines[name] for name in ("documents", "tokens", "dimensions")} == {
        "documents": "40",
        "tokens": f"{manifest.tokens:,}",
        "dimensions": "128",
    }
    assert {"coverage", "index", "disk", "memory", "time"} <= lines.keys()
    assert "GPU" not in lines
    wrong = here("estimate", "--model", "/nothing", *options[2:])
    assert (wrong.returncode, "no model directory" in wrong.stderr) == (1, True)
    assert "Traceback" not in wrong.stderr


def test_scores_of_a_corpus_are_written_and_added_up_by_source(sources):
    columns = ColumnsSpec(id="id", metadata=("source",))
    build_index(BuildSpec.model_validate(build_request(sources, columns=columns)), sources / "facts")
    queries, output = sources / "queries.jsonl", sources / "scores.jsonl"
    queries.write_text(json.dumps({"prompt": "Person 3 lives in", "completion": " city 1."}) + "\n")
    options = ("--queries", queries, "--output", output, "--by", "source", "--top-k", 3)
    printed = in_this_process("score", sources / "facts", *options)
    assert "3 of 40 documents" in printed
    assert {("web", "20"), ("wiki", "20")} <= {tuple(line.split()[:2]) for line in printed.splitlines()}
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [set(row) for row in rows] == [{"id", "score", "loss", "n_tokens", "metadata"}] * 3


def test_an_output_is_ranked_and_replaced_on_request_only(sources):
    build_index(BuildSpec.model_validate(build_request(sources)), sources / "facts")
    output = sources / "odd.parquet"
    command = ["self-influence", str(sources / "facts"), "--output", str(output), "--top_k", "5"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    scores = pq.read_table(output)["score"].to_pylist()
    assert (len(scores), scores) == (5, sorted(scores, reverse=True))
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, InvalidInput)
    assert "there already" in str(again.exception)
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0


def test_check_compares_each_precision_and_recommends_one(sources, here):
    result = here("check", "--model", sources / "model")
    assert result.returncode == 0, result.stderr
    assert {"float32", "bfloat16"} <= {line.split()[0] for line in result.stdout.splitlines() if line.strip()}
    assert "recommended: --dtype" in result.stdout
    missing = here("check", "--model", "/nothing")
    assert (missing.returncode, "no model directory" in missing.stderr) == (1, True)


BAD_COMMANDS = {
    "no such model": (("--model", "/nothing"), "no model directory"),
    "no such dataset": (("--dataset", "nothing.jsonl"), "no dataset"),
    "a missing column": (("--prompt_column", "body"), "it has"),
    "a projection of 0": (("--projection_dim", "0"), "greater than or equal to 1"),
    "a negative projection": (("--projection_dim", "-4"), "greater than or equal to 1"),
    "an unknown normalizer": (("--normalizer", "sgd"), "'adafactor'"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_a_bad_build_says_what_was_expected_and_leaves_nothing(case, sources, here):
    changes, says = BAD_COMMANDS[case]
    options = {"--model": sources / "model", "--dataset": sources / "documents.jsonl", changes[0]: changes[1]}
    run = bergson if case == "no such model" else here
    result = run(sources / "facts", *(word for pair in options.items() for word in pair))
    assert result.returncode in (1, 2)  # 2: the command line itself refuses the option
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not (sources / "facts").exists()


@pytest.mark.parametrize(
    "command",
    [
        "",
        "build",
        "estimate",
        "query",
        "score",
        "self_influence",
        "evaluate",
        "canary",
        "check",
        "up",
        "serve",
        "worker",
        "demo",
    ],
)
def test_every_option_is_explained(command, here):
    shown = here(*filter(None, [command]), "--help")
    assert shown.returncode == 0
    options = [line for line in shown.stdout.splitlines() if line.lstrip("│ *").startswith("--")]
    assert options
    for line in options:
        words = line.strip("│ ").replace("*", "").split()
        assert len([word for word in words if not word.startswith(("-", "<", "["))]) >= 3, line


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_taken_port_is_named(command, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = bergson(command, "--port", port, "--data_dir", tmp_path)
    assert result.returncode != 0
    assert str(port) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["serve", "up"])
def test_an_unreachable_redis_is_named(command, tmp_path):
    url = f"redis://127.0.0.1:{free_port()}/0"
    result = bergson(command, "--port", free_port(), "--data_dir", tmp_path, REDIS_URL=url)
    assert result.returncode != 0
    assert "Redis" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_leaves_no_process_behind(sent, tmp_path):
    port = free_port()
    process = subprocess.Popen(
        [BERGSON, "up", "--port", str(port), "--data_dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    line = process.stdout.readline()
    assert f":{port}/docs" in line
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    assert len(children_of(tmp_path)) >= 3
    process.send_signal(sent)
    process.wait(40)
    deadline = time.monotonic() + 30
    while (left := children_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_the_demo_finds_the_facts_and_is_quick_the_second_time(tmp_path):
    options = ("demo", "--exit", "--people", 60, "--data_dir", tmp_path, "--port", free_port())
    first = bergson(*options)
    assert first.returncode == 0, first.stdout + first.stderr
    figures = {
        line.split()[0]: line.split()[-3:] for line in first.stdout.splitlines() if line.count("0.") >= 3
    }
    assert float(figures["gradients"][0]) > 5 * float(figures["random"][0])
    assert not children_of(tmp_path)
    started = time.monotonic()
    second = bergson(*options)
    assert second.returncode == 0
    assert "build " not in second.stdout  # the index was there
    assert time.monotonic() - started < 60
