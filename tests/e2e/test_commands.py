"""The command line as its users meet it."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import httpx
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from bergson_core import build_index
from bergson_core.errors import InvalidInput
from bergson_core.indexing.estimation import estimate
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Estimate
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.storage.manifest import read_manifest
from service.cli import app, main
from tests import tiny
from tests.e2e.helpers import BERGSON, build_request, find_processes, run_bergson
from tests.worker.helpers import wait_until
from tests.worker.servers import free_port

pytestmark = pytest.mark.e2e


def output_of(*command: object) -> str:
    """Runs a command in this process, which saves importing torch again, and returns what it prints."""
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def run_main(monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Does what `run_bergson` does in this process, which has imported torch already, errors and status included."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["bergson", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())

    monkeypatch.setenv("COLUMNS", "160")  # Of help texts; tables are as wide as the terminal was.
    return run


def test_an_index_is_built_and_queried_from_the_command_line(sources, run_main):
    index = sources / "facts"
    options = ("--model", sources / "model", "--dataset", sources / "documents.jsonl", "--projection_dim", 4)
    built = run_bergson(index, *options, "--id_column", "id")
    assert built.returncode == 0, built.stderr
    assert "40 documents" in built.stdout
    text = tiny.texts(40)[5]
    query = ("query", index, "--prompt", text[:1], "--completion", text[1:], "--top-k", 1)
    assert text in output_of(*query)  # Without a terminal nothing is cut or wrapped.
    answer = json.loads(output_of(*query, "--json"))
    assert answer["results"][0]["prompt"] == text
    verified = json.loads(output_of(*query, "--verify", 1, "--json"))
    assert verified["results"][0]["verified"]["own_log_probability"] < 0
    assert len(verified["verification"]["controls"]) == 3
    assert output_of(*query, "--verify", 1).count("(random)") == 3
    printed = output_of(*query, "--include", "tokens", "--include", "modules")
    assert text in printed
    assert "gpt_neox.layers.1.mlp.dense_h_to_4h' +" in printed
    assert "40 documents" in output_of("build", index, *options, "--id_column", "id")
    other = run_main(index, *options)
    assert (other.returncode, "choose another directory" in other.stderr) == (1, True)


def test_an_index_is_evaluated_from_the_command_line(sources, tmp_path):
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
        tmp_path / "losses",
    )
    command = ("evaluate", sources / "facts", "--queries", tmp_path / "queries.jsonl", *measures)
    printed = output_of(*command, *training, "--output", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["methods"].keys() == {"index", "bm25", "gold"}
    assert f"{figures['methods']['index']['retrieval']['mrr']:.3f}" in printed
    assert f"{figures['methods']['gold']['lds']['mean']:+.3f} [" in printed
    unknown = CliRunner().invoke(app, [*map(str, command), "--measure", "magic"])
    assert "magic" in str(unknown.exception)


def test_an_index_is_changed_and_its_checksums_are_compared_from_the_command_line(sources, run_main):
    columns = ColumnsSpec(id="id", metadata=("source",))
    build_index(BuildSpec.model_validate(build_request(sources, columns=columns)), sources / "facts")
    rows = [{"id": f"new-{k}", "text": text, "source": "x"} for k, text in enumerate(tiny.texts(5))]
    (sources / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    append = ("append", sources / "facts", "--dataset", sources / "more.jsonl")
    assert "45 documents, 5 added, generation 2" in output_of(*append)
    assert "added before" in output_of(*append)
    assert output_of("takedown", sources / "facts", "new-0", "doc-3").count("is taken down") == 2
    assert "43 documents" in output_of("compact", sources / "facts")
    assert "all as they were written" in output_of("checksum", sources / "facts")
    path = next((sources / "facts" / "shards").glob("*/gradients.bin"))
    path.write_bytes(bytes(len(path.read_bytes())))
    failed = run_main("checksum", sources / "facts")
    assert (failed.returncode, "was altered" in failed.stderr) == (1, True)


def test_a_dataset_is_read_as_a_stream_on_request(sources):
    index, options = sources / "facts", ("--projection_dim", "4", "--streaming")
    paths = ("--model", str(sources / "model"), "--dataset", str(sources / "documents.jsonl"))
    output_of("build", index, *paths, *options)
    manifest = read_manifest(index)
    streamed = DatasetSpec(path=str(sources / "documents.jsonl"), streaming=True)
    assert (manifest.rows, manifest.spec.dataset) == (40, streamed)


def test_an_estimate_takes_the_options_of_a_build_and_foretells_its_figures(sources, monkeypatch):
    source = ("--model", sources / "model", "--dataset", sources / "documents.jsonl", "--id_column", "id")
    options = (*source, "--projection_dim", 4, "--search", "rabitq", "--min_recall", 0.2)
    estimated = json.loads(output_of("estimate", *options, "--json"))
    output_of("build", sources / "facts", *options)
    manifest = read_manifest(sources / "facts")
    assert (estimated["documents"], estimated["tokens"]) == (manifest.rows, manifest.tokens)
    assert estimated["search"] == manifest.search.kind == "rabitq"
    assert estimated["size_bytes"]["total"] == manifest.total_bytes()
    assert manifest.spec.search.min_recall == 0.2
    # The table shows the estimate from above, which takes no second run.
    with monkeypatch.context() as patched:
        patched.setattr(estimate, "estimate_build", lambda *_, **__: Estimate.model_validate(estimated))
        printed = output_of("estimate", *options)
    lines = {line.split()[0]: line.split()[1] for line in printed.splitlines() if line.strip()}
    assert {name: lines[name] for name in ("documents", "tokens", "dimensions")} == {
        "documents": "40",
        "tokens": f"{manifest.tokens:,}",
        "dimensions": "128",
    }
    assert {"coverage", "index", "disk", "memory", "time"} <= lines.keys()
    assert "GPU" not in lines


def test_scores_of_a_corpus_are_written_and_added_up_by_source(sources):
    columns = ColumnsSpec(id="id", metadata=("source",))
    build_index(BuildSpec.model_validate(build_request(sources, columns=columns)), sources / "facts")
    queries, output = sources / "queries.jsonl", sources / "scores.jsonl"
    queries.write_text(json.dumps({"prompt": "Person 3 lives in", "completion": " city 1."}) + "\n")
    options = ("--queries", queries, "--output", output, "--by", "source", "--top-k", 3)
    printed = output_of("score", sources / "facts", *options)
    assert "3 of 40 documents" in printed
    assert {("web", "20"), ("wiki", "20")} <= {tuple(line.split()[:2]) for line in printed.splitlines()}
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [set(row) for row in rows] == [{"id", "score", "loss", "n_tokens", "metadata"}] * 3


def test_scores_that_are_added_up_are_thresholded_unless_told_otherwise(sources):
    build_index(BuildSpec.model_validate(build_request(sources)), sources / "facts")
    queries = sources / "queries.jsonl"
    queries.write_text(json.dumps({"prompt": "Person 3 lives in", "completion": " city 1."}) + "\n")

    def scores(*options: str) -> list[float]:
        output = sources / "scores.parquet"
        command = ["score", str(sources / "facts"), "--queries", str(queries), "--output", str(output)]
        result = CliRunner().invoke(app, [*command, "--overwrite", *options])
        assert result.exit_code == 0, result.output
        return pq.read_table(output)["score"].to_pylist()

    assert scores("--by", "source") == scores("--threshold", "3") != scores()
    assert scores("--by", "source", "--threshold", "0") == scores()


def test_self_influence_is_written_highest_first_and_replaces_a_file_only_on_request(sources):
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


def test_check_compares_each_precision_and_recommends_one(sources, run_main):
    result = run_main("check", "--model", sources / "model")
    assert result.returncode == 0, result.stderr
    assert {"float32", "bfloat16"} <= {line.split()[0] for line in result.stdout.splitlines() if line.strip()}
    assert "recommended: --dtype" in result.stdout
    missing = run_main("check", "--model", "/nothing")
    assert (missing.returncode, "no model directory" in missing.stderr) == (1, True)


BAD_OPTIONS = {
    "no such model": (("--model", "/nothing"), "no model directory"),
    "no such dataset": (("--dataset", "nothing.jsonl"), "no dataset"),
    "a missing column": (("--prompt_column", "body"), "it has"),
    "a projection of 0": (("--projection_dim", "0"), "expected at least 1"),
    "a negative projection": (("--projection_dim", "-4"), "expected at least 1"),
    "an unknown normalizer": (("--normalizer", "sgd"), "'adafactor'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_build_with_a_bad_option_names_what_was_expected_and_leaves_no_files(case, sources, run_main):
    change, message = BAD_OPTIONS[case]
    options = {"--model": sources / "model", "--dataset": sources / "documents.jsonl", change[0]: change[1]}
    result = run_main(sources / "facts", *(word for pair in options.items() for word in pair))
    assert result.returncode in (1, 2)  # 2 where the command line itself refuses the option.
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (sources / "facts").exists()


@pytest.mark.parametrize(
    "command",
    [
        "",
        "build",
        "estimate",
        "query",
        "profile",
        "append",
        "checksum",
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
def test_every_option_is_explained(command, run_main):
    result = run_main(*filter(None, [command]), "--help")
    assert result.returncode == 0
    options = [line for line in result.stdout.splitlines() if line.lstrip("│ *").startswith("--")]
    assert options
    for line in options:
        words = line.strip("│ ").replace("*", "").split()
        assert len([word for word in words if not word.startswith(("-", "<", "["))]) >= 3, line


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_port_that_is_taken_is_named(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_bergson(command, "--port", port, "--data_dir", tmp_path)
    assert result.returncode != 0
    assert str(port) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_redis_that_does_not_answer_is_named(command, tmp_path):
    url = f"redis://127.0.0.1:{free_port()}/0"
    result = run_bergson(command, "--port", free_port(), "--data_dir", tmp_path, REDIS_URL=url)
    assert result.returncode != 0
    assert "Redis" in result.stderr
    assert "Traceback" not in result.stderr


def test_up_leaves_no_process_behind_when_it_is_killed(tmp_path):
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
    assert len(find_processes(tmp_path)) >= 3
    process.kill()
    process.wait(40)
    wait_until(lambda: not find_processes(tmp_path))


def test_up_is_silent_until_it_is_ready_then_prints_one_line_and_leaves_no_process_behind(tmp_path):
    port = free_port()
    command = [BERGSON, "up", "--port", str(port), "--data_dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "", "")
    wait_until(lambda: not find_processes(tmp_path))
    assert f"http://127.0.0.1:{port}/docs" in line
    assert str(tmp_path / "processes.log") in line
    log = (tmp_path / "processes.log").read_text()
    assert "dashboard: http" in log
    assert "no worker is alive" not in log and log.count("/readyz") <= 3


@pytest.mark.usefixtures("quick_processes")
def test_the_demo_finds_the_facts_and_reuses_its_index_the_second_time(tmp_path, run_main):
    options = ("demo", "--exit", "--people", 24, "--data_dir", tmp_path, "--port", free_port())
    first = run_bergson(*options)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = re.findall(r"^ *(\w+) .* ([01]\.\d{3}) +[01]\.\d{3} +[01]\.\d{3}", first.stdout, re.MULTILINE)
    mean_reciprocal_ranks = {name: float(number) for name, number in rows}
    assert "http://" not in first.stdout
    assert mean_reciprocal_ranks["gradients"] > 5 * mean_reciprocal_ranks["random"]
    assert not find_processes(tmp_path)
    (index,) = re.findall(r"index   (facts-\w+)", first.stdout)
    second = run_main(*options)
    assert second.returncode == 0, second.stderr
    assert f"index   {index}" in second.stdout
    assert "build " not in second.stdout
