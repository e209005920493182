"""The command line: quick to start, helpful with mistakes, and nothing of its output is cut."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

import bergson_core
from bergson_core.schemas.presets import PRESETS
from bergson_core.schemas.results import Answer
from service.cli import main
from service.cli.query import _print_csv
from service.cli.support import console as console_module
from service.cli.support.console import console
from service.cli.support.result_tables import results_table
from tests.worker.helpers import wait_until

BERGSON = str(Path(sys.executable).with_name("bergson"))


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [BERGSON, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options
    )


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Does what `run` does, in this process."""

    def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["bergson", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())

    return run_here


def make_manifest(directory: Path, **changes: Any) -> Path:
    """Writes the manifest of an index without files, which can be listed but not queried."""
    manifest = {
        "format_version": 7,
        "generation": 2,
        "created_at": "2026-01-02T03:04:05+00:00",
        "spec": {
            "model": "org/model",
            "dataset": {"path": "org/data"},
            "columns": {"metadata": ["source"]},
            "gradients": {"projection_dim": 4},
        },
        "fingerprint": "f",
        "model_sha256": "abc",
        "model_revision": "1" * 40,
        "modules": [{"name": "m", "out_features": 2, "in_features": 3}],
        "coverage_percent": 50.5,
        "dimensions": 16,
        "rows": 1234,
        "tokens": 5678,
        "skipped": 0,
        "numbered": 1234,
        "files": [],
        "shards": [],
        "profiles": [{"name": "default", "files": []}],
        "search": {
            "kind": "float16",
            "candidates": 10,
            "recall_at_10": 1.0,
            "opponents_recall_at_10": 1.0,
            "queries": 5,
            "rows": 1234,
        },
    }
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text(json.dumps(manifest | changes))
    return directory


MISTYPED = [
    ("qurey facts --prompt x", "no such command 'qurey', did you mean 'query'?"),
    ("Query facts", "no such command 'Query', did you mean 'query'?"),
    ("lst", "no such command 'lst', did you mean 'list'?"),
    ("self-influense facts", "no such command 'self-influense', did you mean 'self_influence'?"),
    ("takdown facts id", "no such command 'takdown', did you mean 'takedown'?"),
    ("relocat facts", "no such command 'relocat', did you mean 'relocate'?"),
    ("demoo --help", "no such command 'demoo', did you mean 'demo'?"),
    ("./facts --dataset x", "no such command './facts'; to build an index there: bergson ./facts --model M"),
    ("zzz", "no such command 'zzz'; to build an index there: bergson zzz --model M --dataset D"),
    ("query facts --prompt x --topk 3", "no such option --topk, did you mean --top_k?"),
    ("query facts --promt x", "no such option --promt, did you mean --prompt?"),
    ("build facts --model x --datset y", "no such option --datset, did you mean --dataset?"),
    ("keys creat x", "no such command 'creat', did you mean 'create'?"),
    ("keys zzz", "no such command 'zzz'"),
    ("facts --modle M --dataset D", "no such option --modle, did you mean --model?"),
    ("facts --dataset D --mdoel=M", "no such option --mdoel, did you mean --model?"),
    ("query facts --prompt a --span 0 8", "write a span as START:END"),
    ("query", "Missing argument 'INDEX'"),
    ("info", "Missing argument 'INDEX'"),
    ("build facts --model x", "Missing option '--dataset'"),
    ("list --format yaml", "--format"),
]


@pytest.mark.parametrize(("line", "message"), MISTYPED)
def test_a_mistake_in_the_command_is_named_in_one_line_with_status_2(line, message, run_main):
    result = run_main(*line.split())
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[0]
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "line",
    [
        "qurey --model M",
        "qurey --model=M",
        "--model M qurey",
        "help --model M",
        "a/b --model M",
        "a --models M --models N",
    ],
)
def test_whatever_has_a_model_is_a_build_also_if_its_path_looks_like_a_command(line, run_main):
    result = run_main(*line.split())
    assert "Missing option '--dataset'" in result.stderr
    assert "Usage: bergson build" in result.stderr


def test_the_path_of_an_index_without_a_command_says_how_to_query_it(tmp_path, run_main):
    path = make_manifest(tmp_path / "facts")
    assert f"to query the index there: bergson query {path}" in run_main(path).stderr


def test_help_comes_in_every_form(run_main):
    assert run_main("--help").stdout == run_main("help").stdout
    assert run_main("--help").stdout == run_main("-h").stdout
    assert run_main("query", "--help").stdout == run_main("query", "-h").stdout
    assert "Usage: bergson build" in run_main("facts", "-h").stdout
    assert run_main("query", "--help").stdout == run_main("help", "query").stdout
    assert "Usage: bergson build" in run_main("facts", "--help").stdout
    alone = run_main()
    assert (alone.returncode, "Usage: bergson" in alone.stdout) == (2, True)


def test_help_says_what_the_presets_are(run_main):
    first, build = (" ".join(run_main(*words).stdout.split()) for words in (["--help"], ["build", "--help"]))
    for name, preset in PRESETS.items():
        assert f"--preset {name}" in first
        text = build.replace(" │ │ ", " ")
        assert f"{name} is" in text
        assert all(field in text for values in preset.values.values() for field in values)


def test_a_command_that_needs_torch_says_so_where_there_is_none(run_main, monkeypatch, tmp_path):
    make_manifest(tmp_path / "facts")
    monkeypatch.setitem(sys.modules, "bergson_core.attribution.index", None)  # as where a package is missing
    with pytest.raises(ModuleNotFoundError):
        run_main("query", tmp_path / "facts", "--prompt", "a", "--completion", " b")
    monkeypatch.setattr("service.cli.find_spec", lambda name: None)
    result = run_main("query", tmp_path / "facts", "--prompt", "a", "--completion", " b")
    assert result.returncode == 1
    assert result.stderr.startswith("error: this command runs a model, and torch is not installed: install")


def test_the_version_is_printed(run_main):
    result = run_main("--version")
    assert (result.returncode, result.stdout) == (0, f"bergson {bergson_core.__version__}\n")


def test_the_indexes_of_a_directory_are_listed_in_each_format(tmp_path, run_main):
    make_manifest(tmp_path / "b-second", generation=3)
    make_manifest(tmp_path / "a-first", adapter_base=None)
    make_manifest(tmp_path / "damaged", rows="many")
    (tmp_path / "directory" / "manifest.json").mkdir(parents=True)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "building.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    result = run_main("list", tmp_path)
    table = result.stdout.splitlines()
    assert [line.split()[:4] for line in table[1:3]] == [
        ["a-first", "ready", "1,234", "2"],
        ["b-second", "ready", "1,234", "3"],
    ]
    assert [line.split()[:2] for line in table[3:]] == [
        ["damaged", "corrupt"],
        ["directory", "corrupt"],
        ["half", "unfinished"],
    ]
    damaged, directory = result.stderr.splitlines()
    assert damaged.startswith(f"warning: damaged: {tmp_path}/damaged/manifest.json is not a manifest that ")
    assert "https://" not in damaged
    assert directory.startswith(f"warning: directory: {tmp_path}/directory/manifest.json cannot be read: ")
    rows = list(csv.DictReader(io.StringIO(run_main("list", tmp_path, "--format", "csv").stdout)))
    assert [row["name"] for row in rows] == ["a-first", "b-second", "damaged", "directory", "half"]
    assert (rows[0]["rows"], rows[0]["model"]) == ("1234", "org/model")
    items = json.loads(run_main("list", tmp_path, "--format", "json").stdout)
    assert [(item["name"], item["rows"]) for item in items[:2]] == [("a-first", 1234), ("b-second", 1234)]


def test_a_data_directory_an_index_and_the_current_directory_can_be_listed(tmp_path, monkeypatch, run_main):
    make_manifest(tmp_path / "data" / "indexes" / "facts")
    (tmp_path / "empty").mkdir()
    for path in ("data", "data/indexes", "data/indexes/facts"):
        assert "facts" in run_main("list", tmp_path / path).stdout
    monkeypatch.chdir(tmp_path / "data")
    assert "facts" in run_main("list").stdout
    monkeypatch.chdir(tmp_path / "data" / "indexes" / "facts")
    assert "facts" in run_main("info", ".").stdout
    assert "no indexes" in run_main("list", tmp_path / "empty").stdout
    missing = run_main("list", tmp_path / "nothing")
    assert (missing.returncode, "is not a directory" in missing.stderr) == (1, True)


def test_an_index_is_described_for_people_and_for_programs(tmp_path, run_main):
    path = make_manifest(tmp_path / "facts")
    table = run_main("info", path).stdout
    lines = {line.split("  ")[0]: line for line in table.splitlines()}
    assert "1,234" in lines["documents"]
    assert "projection_dim 4" in lines["gradients"]
    assert lines["scoring"].endswith("  the defaults")
    assert lines["dataset"].endswith("  path org/data")
    assert "Spec(" not in table
    assert str(path) in lines["index"]
    detail = json.loads(run_main("info", path, "--format", "json").stdout)
    assert (detail["name"], detail["rows"], detail["spec"]["model"]) == ("facts", 1234, "org/model")


def test_documents_of_a_request_are_no_dataset_that_could_be_looked_for(tmp_path, run_main):
    spec = {"model": "org/model", "dataset": {"path": f"/srv/data/uploads/facts-{64 * 'a'}.jsonl"}}
    table = run_main("info", make_manifest(tmp_path / "facts", spec=spec)).stdout
    (line,) = (line for line in table.splitlines() if line.startswith("dataset"))
    assert line.endswith("  given in the request")


def test_a_local_model_that_is_gone_is_marked(tmp_path, run_main):
    spec = {"model": str(tmp_path / "gone"), "dataset": {"path": "org/data"}}
    path = make_manifest(tmp_path / "facts", spec=spec, model_revision=None)
    assert "not there: bergson relocate" in run_main("info", path).stdout


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no index at"),
        (lambda path: path.write_text("x"), "is a file; expected the directory of an index"),
        (lambda path: path.mkdir(), "no index at"),
        (lambda path: (path.mkdir(), (path / "building.json").write_text("{}")), "its build is not finished"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_text("{")), "cannot be read"),
    ],
)
@pytest.mark.parametrize(
    "command", [("info",), ("query", "--prompt", "x"), ("checksum",), ("relocate", "--dataset", "/")]
)
def test_what_is_no_index_is_named_as_what_it_is(command, make, message, tmp_path, run_main):
    make(tmp_path / "facts")
    name, *options = command
    result = run_main(name, tmp_path / "facts", *options)
    assert (result.returncode, message in result.stderr) == (1, True)


TEXT = "ä " * 200 + "the end"
ANSWER = Answer.model_validate(
    {
        "index": "facts",
        "generation": 1,
        "query": {"prompt": "a", "completion": "b", "generated": False, "loss": 1.0, "n_tokens": 1},
        "results": [
            {"rank": 1, "id": "i" * 300, "score": 0.5, "percentile": 99.0, "loss": 2.0, "prompt": TEXT},
            {"rank": 2, "id": "b", "score": 0.25, "loss": None, "prompt": "x", "completion": "y"},
        ],
        "opponents": [
            {
                "rank": 1,
                "id": "c",
                "score": -0.5,
                "loss": 1.0,
                "prompt": "p",
                "metadata": {"year": 1999, "source": "wiki"},
            },
        ],
        "timing_ms": {"queue": 0, "gradient": 0, "search": 0, "total": 0},
    }
)


def test_without_a_terminal_nothing_is_cut_or_wrapped_or_padded(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    console.print(results_table("title", ANSWER.results))
    _, header, first, second = capsys.readouterr().out.splitlines()
    assert "i" * 300 in first
    assert first.endswith("the end")
    assert second.endswith("xy")
    assert header.split() == ["score", "percentile", "loss", "id", "document"]


def test_a_table_has_the_intervals_and_the_strengths_that_there_are(capsys):
    first, second = ANSWER.results
    first = first.model_copy(update={"id": "a", "interval": (0.4, 0.6), "strength": "strong"})
    console.print(results_table("title", [first, second]))
    _, header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["score", "interval", "percentile", "strength", "loss", "id", "document"]
    assert lines[0].split()[:6] == ["+0.5000", "+0.4000", "to", "+0.6000", "99.00", "strong"]
    assert lines[1].split() == ["+0.2500", "b", "xy"]
    _print_csv(ANSWER.model_copy(update={"results": [first, second]}), escape_formulas=False)
    values, others, *_ = csv.DictReader(io.StringIO(capsys.readouterr().out))
    columns = ("strength", "interval.low", "interval.high")
    assert [values[name] for name in columns] == ["strong", "0.4", "0.6"]
    assert [others[name] for name in columns] == ["", "", ""]


def test_a_narrow_terminal_folds_ids_and_texts_and_cuts_none(monkeypatch):
    file = io.StringIO()
    file.isatty = lambda: True
    narrow = console_module._Console(file=file, width=60, color_system=None)
    narrow.print(results_table("title", ANSWER.results))
    printed = file.getvalue()
    assert "…" not in printed
    assert printed.count("i") >= 300
    assert max(map(len, printed.splitlines())) <= 60


def test_a_table_shows_metadata_and_leaves_out_texts_that_nobody_asked_for(capsys):
    console.print(results_table("t", ANSWER.opponents))
    _, header, row = capsys.readouterr().out.splitlines()
    assert header.split()[-3:] == ["year", "source", "document"]
    assert row.split()[-3:] == ["1999", "wiki", "p"]
    without_text = [row.model_copy(update={"prompt": None}) for row in ANSWER.opponents]
    console.print(results_table("t", without_text))
    assert "document" not in capsys.readouterr().out


def test_csv_has_a_row_for_each_result_and_a_column_for_each_kind_of_metadata(capsys):
    _print_csv(ANSWER, escape_formulas=False)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["direction"], row["rank"], row["id"][:1]) for row in rows] == [
        ("proponents", "1", "i"),
        ("proponents", "2", "b"),
        ("opponents", "1", "c"),
    ]
    assert (rows[2]["metadata.year"], rows[2]["metadata.source"], rows[1]["loss"]) == ("1999", "wiki", "")
    assert rows[0]["prompt"] == TEXT
    assert float(rows[0]["score"]) == 0.5


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "LC_ALL": "POSIX"}]
)
def test_any_text_can_be_printed_in_any_locale(locale, tmp_path):
    make_manifest(tmp_path / "ä-\u4e2d")
    for output_format in ("table", "csv", "json"):
        result = run("list", tmp_path, "--format", output_format, env={**os.environ, **locale})
        assert result.returncode == 0, result.stderr


def test_output_without_a_terminal_has_no_colours_and_a_terminal_may_turn_them_off(tmp_path):
    make_manifest(tmp_path / "facts")
    assert "\x1b" not in run("list", tmp_path).stdout
    primary, secondary = pty.openpty()
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    subprocess.run([BERGSON, "qurey"], stderr=secondary, env=environment, check=False)
    os.close(secondary)
    assert b"\x1b[31m" not in os.read(primary, 4096)
    os.close(primary)


@pytest.mark.parametrize("command", ["list", "help"])
def test_a_reader_that_ends_early_causes_no_message(command, tmp_path):
    for number in range(300):
        make_manifest(tmp_path / f"index-{number}")
    line = {"list": f"list {tmp_path}", "help": "help"}[command]
    for reader in ("true", "head -n 1"):
        result = subprocess.run(
            f"{BERGSON} {line} | {reader}",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.stderr == ""


@pytest.mark.parametrize(
    "line", ["--help", "--version", "list {0}", "list {0} --format csv", "info {0}/index-1"]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("output", "message"),
    [
        (">&-", "error: standard output is closed; expected a terminal, a file, a pipe or /dev/null"),
        ("> /dev/full", "error: the output cannot be written: No space left on device"),
    ],
)
def test_an_output_that_cannot_be_written_is_an_error_in_a_line(line, unbuffered, output, message, tmp_path):
    make_manifest(tmp_path / "index-1")
    result = subprocess.run(
        f"{BERGSON} {line.format(tmp_path)} {output}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert (result.returncode, result.stderr) == (1, message + "\n")


def test_an_argument_that_the_locale_cannot_decode_blames_the_locale(tmp_path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    result = run("query", tmp_path, "--prompt", "Zoë", env={**os.environ, **locale})
    assert result.returncode == 1
    assert "the locale has the encoding ascii" in result.stderr


def test_an_error_without_progress_is_the_only_line(run_main, tmp_path):
    missing = tmp_path / "missing"
    for result in (
        run("build", missing, "--model", missing, "--dataset", missing),
        run_main("compact", missing),  # in this process, which has loaded torch
    ):
        assert result.returncode == 1
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


def open_pipe(path: Path) -> int | None:
    """Opens a named pipe that another process has opened to read from; returns None until there is one."""
    with suppress(OSError):
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    return None


def test_ctrl_c_ends_a_command_with_status_130_and_a_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    manifest = tmp_path / "manifest.json"
    os.mkfifo(manifest)  # Reading it waits for ever.
    process = subprocess.Popen([BERGSON, "info", tmp_path], stderr=subprocess.PIPE, text=True)
    pipe = wait_until(lambda: open_pipe(manifest))
    stderr = None
    while (
        stderr is None
    ):  # A signal between the opening of the pipe and its reading does not end the reading.
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            _, stderr = process.communicate(timeout=10)
    os.close(pipe)
    assert (process.returncode, stderr) == (130, "interrupted\n")


def test_a_table_is_printed_the_same_through_rich_itself(capsys):
    table = Table(box=None, pad_edge=False)
    table.add_column("a")
    table.add_column("b")
    table.add_row("1", "2")
    console.print(table)
    printed = capsys.readouterr().out
    with (plain := Console(width=80)).capture() as captured:
        plain.print(table)
    assert [line.rstrip() for line in captured.get().splitlines()] == printed.splitlines()


@pytest.mark.parametrize("command", [("up",), ("worker",), ("keys", "list")])
def test_a_wrong_setting_is_named_by_its_variable(command, run_main, monkeypatch, tmp_path):
    monkeypatch.setenv("BERGSON_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("BERGSON_QUERY_BATCH", "many")
    result = run_main(*command)
    assert result.returncode == 1
    assert result.stderr.startswith("error: BERGSON_QUERY_BATCH: ") and "got 'many'" in result.stderr


@pytest.mark.parametrize("command", [("up", "--port", "0"), ("keys", "list")])
def test_a_misspelled_setting_brings_a_warning(command, run_main, monkeypatch, tmp_path):
    monkeypatch.setenv("BERGSON_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("BERGSON_MAX_QEUED_JOBS", "5")
    monkeypatch.setenv("BERGSON_ALLOWED_ROOTS", "/nope")
    result = run_main(*command)
    assert (
        "warning: BERGSON_MAX_QEUED_JOBS is no setting: did you mean BERGSON_MAX_QUEUED_JOBS?"
        in result.stderr
    )
    assert ("BERGSON_ALLOWED_ROOTS: no directory at /nope" in result.stderr) == (command[0] == "up")
