"""`bergson query` prints the warnings of an answer on standard error, and the answer alone on standard output."""

import csv
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import BergsonError, InvalidInput, Unavailable
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.query import AttributionQuery, VerifySpec
from bergson_core.schemas.record import Record
from bergson_core.storage.document_table import DOCUMENT_TABLE_FILE, make_document_table, write_document_table
from service.cli import app as commands
from service.client import Client
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker, make_answer, publish_manifest
from tests.service.helpers import serve_app
from worker.messages import ServiceQuery

ARGUMENTS = ("--prompt", "Ada was born in", "--completion")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AttributionQuery]:
    """Returns the queries that an index is asked, which answers at once."""
    queries: list[AttributionQuery] = []

    def attribute(given: list[AttributionQuery]) -> list[object]:
        queries.extend(given)
        return [make_answer(ServiceQuery.model_validate(dict(query)), ["a text"]) for query in given]

    monkeypatch.setattr(
        AttributionIndex, "open", lambda path, **options: SimpleNamespace(attribute=attribute)
    )
    return queries


@pytest.mark.parametrize("output", [[], ["--json"]], ids=["table", "json"])
def test_warnings_go_to_standard_error(
    asked: list[AttributionQuery], tmp_path: Path, output: list[str]
) -> None:
    result = CliRunner().invoke(commands, ["query", str(tmp_path), *ARGUMENTS, "London", *output])
    assert result.exit_code == 0
    assert result.stderr == "warning: no space before it; probably meant: ' London'\n"
    assert "warning:" not in result.stdout
    if output:
        assert json.loads(result.stdout)["warnings"][0]["suggestion"] == " London"
    assert CliRunner().invoke(commands, ["query", str(tmp_path), *ARGUMENTS, " London", *output]).stderr == ""


def test_join_is_an_option(asked: list[AttributionQuery], tmp_path: Path) -> None:
    CliRunner().invoke(commands, ["query", str(tmp_path), *ARGUMENTS, "London", "--join", "space"])
    CliRunner().invoke(commands, ["query", str(tmp_path), *ARGUMENTS, "London"])
    assert [query.join for query in asked] == ["space", "exact"]


@pytest.mark.parametrize("output", [[], ["--format", "csv"], ["--json"]], ids=["table", "csv", "json"])
def test_rescore_is_an_option_and_exact_scores_are_told_from_others(
    asked: list[AttributionQuery], tmp_path: Path, output: list[str]
) -> None:
    arguments = ["query", str(tmp_path), *ARGUMENTS, " London", *output]
    rescored = CliRunner().invoke(commands, [*arguments, "--rescore", "20"])
    plain = CliRunner().invoke(commands, arguments)
    assert [query.rescore for query in asked] == [20, None]
    if "--json" in output:
        results = [json.loads(result.stdout)["results"][0] for result in (rescored, plain)]
        assert [result["exact"] for result in results] == [True, False]
    else:
        assert "exact" in rescored.stdout
        assert "exact" not in plain.stdout
    refused = CliRunner().invoke(commands, [*arguments, "--rescore", "1001"])
    assert refused.exit_code == 2
    assert "less than or equal to 1000" in refused.stderr


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ([], "words  states  id"),
        (["--format", "csv"], "metadata.source,loss,words.rank,words.score,words.states"),
    ],
    ids=["table", "csv"],
)
def test_order_is_an_option_and_the_words_of_results_are_columns(
    asked: list[AttributionQuery], tmp_path: Path, options: list[str], columns: str
) -> None:
    arguments = ["query", str(tmp_path), *ARGUMENTS, " London", *options]
    ordered = CliRunner().invoke(commands, [*arguments, "--order", "fused"])
    included = CliRunner().invoke(commands, [*arguments, "--include", "text", "--include", "words"])
    plain = CliRunner().invoke(commands, arguments)
    assert [query.order for query in asked] == ["fused", "influence", "influence"]
    assert [query.compares_words for query in asked] == [True, True, False]
    assert columns in " ".join(ordered.stdout.split("\n")[:5])
    assert "words" in included.stdout
    assert "words" not in plain.stdout


def test_together_goes_with_verify_and_its_table_has_a_row_for_the_group(
    asked: list[AttributionQuery], tmp_path: Path
) -> None:
    arguments = ["query", str(tmp_path), *ARGUMENTS, " London"]
    result = CliRunner().invoke(commands, [*arguments, "--verify", "1", "--together"])
    assert [query.verify for query in asked] == [VerifySpec(top=1, together=True)]
    lines = [line.split()[3:] for line in result.stdout.splitlines() if "together" in line or "sum" in line]
    assert [" ".join(line) for line in lines] == [
        "1 results together",
        "1 results, sum of the single steps",
        "1 documents together (random)",
    ]
    refused = CliRunner().invoke(commands, [*arguments, "--together"])
    assert isinstance(refused.exception, InvalidInput)
    assert "--verify" in str(refused.exception)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_results_are_written_to_a_file_with_all_of_their_text(
    asked: list[AttributionQuery], tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"answer.{suffix}"
    arguments = ["query", str(tmp_path), *ARGUMENTS, " London", "--output", str(output)]
    result = CliRunner().invoke(commands, [*arguments, "--include", "text", "--include", "words"])
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines() == [f"{output}: 1 results", "no strong influence found"]
    if suffix == "parquet":
        (row,) = pq.read_table(output).to_pylist()
        assert (row["prompt"], row["words"]["rank"], row["metadata"]) == ("a text", 3, '{"source": "wiki"}')
    elif suffix == "csv":
        (row,) = csv.DictReader(output.open())
        assert (row["prompt"], row["words.rank"], row["metadata.source"]) == ("a text", "3", "wiki")
    else:
        row = json.loads(output.read_text())
        assert (row["prompt"], row["words"]["rank"], row["metadata"]) == ("a text", 3, {"source": "wiki"})
    again = CliRunner().invoke(commands, arguments)
    assert isinstance(again.exception, InvalidInput)
    assert "exists already; expected a new file, or --overwrite to replace it" in str(again.exception)
    assert CliRunner().invoke(commands, [*arguments, "--overwrite"]).exit_code == 0
    assert len(asked) == 2, "a file that cannot be written is refused before anything is asked"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "answer.xlsx"], "expected .jsonl, .csv, .parquet"),
        (["--output", "no/answer.csv"], "not a directory"),
        (["--output", "answer.csv", "--json"], "expected either --format or --output"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_asked(
    asked: list[AttributionQuery], tmp_path: Path, options: list[str], message: str
) -> None:
    result = CliRunner().invoke(commands, ["query", str(tmp_path), *ARGUMENTS, " London", *options])
    assert isinstance(result.exception, InvalidInput)
    assert message in str(result.exception)
    assert not asked


def test_formulas_in_csv_are_escaped_where_that_is_asked_for(
    asked: list[AttributionQuery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attribute(queries: list[AttributionQuery]) -> list[object]:
        return [make_answer(ServiceQuery.model_validate(dict(query)), ["=1+1"]) for query in queries]

    monkeypatch.setattr(
        AttributionIndex, "open", lambda path, **options: SimpleNamespace(attribute=attribute)
    )
    arguments = ["query", str(tmp_path), *ARGUMENTS, " London", "--format", "csv"]
    plain, escaped = (
        next(csv.DictReader(CliRunner().invoke(commands, [*arguments, *options]).stdout.splitlines()))
        for options in ([], ["--escape_formulas"])
    )
    assert (plain["prompt"], escaped["prompt"]) == ("=1+1", "'=1+1")
    assert plain["score"] == escaped["score"]


def test_group_by_is_an_option_and_the_table_has_the_sum_of_each_group(
    asked: list[AttributionQuery], tmp_path: Path
) -> None:
    arguments = ["query", str(tmp_path), *ARGUMENTS, " London"]
    table = CliRunner().invoke(commands, [*arguments, "--group_by", "source"]).stdout
    assert [query.group_by for query in asked] == ["source"]
    assert "sum of the group" in table
    assert "interval of the sum" in table
    assert "strength of the group" in table
    assert "wiki: 1 document" in table
    assert "sum of the group" not in CliRunner().invoke(commands, arguments).stdout
    csv = CliRunner().invoke(commands, [*arguments, "--group_by", "source", "--format", "csv"]).stdout
    assert csv.splitlines()[0].endswith(",group")


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serve_app(app) as url:
        yield url


@pytest.fixture
def no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it an error to open an index on disk."""
    monkeypatch.delattr(AttributionIndex, "open")


@pytest.mark.usefixtures("no_directory")
def test_a_running_service_is_asked_with_all_that_was_given(url: str, broker: FakeBroker) -> None:
    options = ("--top_k", "2", "--direction", "both", "--span", "0:3", "--filter", '{"source": ["wiki"]}')
    arguments = ["query", "facts", "--url", url, *ARGUMENTS, "London", "--verify", "1", *options]
    result = CliRunner().invoke(commands, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["index"] == "facts"
    ((query, *_),) = broker.queries
    assert query.model_dump(exclude_defaults=True) == {
        "index": "facts",
        "prompt": "Ada was born in",
        "completion": "London",
        "top_k": 2,
        "direction": "both",
        "span": (0, 3),
        "filter": {"source": ("wiki",)},
        "verify": {"top": 1},
    }


@pytest.fixture
def kept(settings: ServiceSettings) -> None:
    """The document of every answer is in the index `facts`."""
    shard = settings.indexes_dir / "facts" / "shards" / "00000"
    shard.mkdir(parents=True)
    table = make_document_table([Record("doc-0", "a text", None, {})], np.ones(1), [2])
    write_document_table(shard / DOCUMENT_TABLE_FILE, table)


@pytest.mark.parametrize("output", [[], ["--json"], ["--format", "csv"]], ids=["table", "json", "csv"])
def test_a_service_keeps_the_answer_under_a_link_that_is_printed_on_standard_error(
    url: str, kept: None, output: list[str]
) -> None:
    arguments = ["query", "facts", "--url", url, *ARGUMENTS, " London", *output]
    result = CliRunner().invoke(commands, [*arguments, "--link"])
    match = re.fullmatch(r"link: (\S+)/links/(\S+) until \S+\n", result.stderr)
    assert result.exit_code == 0 and match and match[1] == url
    with Client(url) as client:
        answer = client.link(match[2]).answer
    assert answer is not None and [row.id for row in answer.results or ()] == ["doc-0"]
    plain = CliRunner().invoke(commands, arguments)
    assert (plain.stderr, "doc-0" in plain.stdout) == ("", True)


def test_a_link_needs_a_service(asked: list[AttributionQuery], tmp_path: Path) -> None:
    result = CliRunner().invoke(commands, ["query", str(tmp_path), *ARGUMENTS, " London", "--link"])
    assert isinstance(result.exception, InvalidInput) and "--url" in str(result.exception)
    assert not asked


def test_warnings_of_a_service_are_printed_once(url: str) -> None:
    result = CliRunner().invoke(commands, ["query", "facts", "--url", url, *ARGUMENTS, "London"])
    assert result.stderr == "warning: no space before it; probably meant: ' London'\n"


@pytest.mark.usefixtures("no_directory")
@pytest.mark.parametrize(
    ("index", "options", "error"),
    [
        ("Facts", [], InvalidInput),
        ("facts", ["--executor", "ray"], InvalidInput),
        ("facts", ["--url", "http://127.0.0.1:9"], Unavailable),
    ],
)
def test_what_a_service_cannot_answer_is_an_error(
    url: str, index: str, options: list[str], error: type[BergsonError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client.Client", partial(Client, retry_s=0))
    arguments = ["query", index, "--url", url, *ARGUMENTS, " London", *options]
    assert isinstance(CliRunner().invoke(commands, arguments).exception, error)


def test_several_indexes_answer_side_by_side(
    url: str, broker: FakeBroker, settings: ServiceSettings, spec: BuildSpec
) -> None:
    publish_manifest(settings.data_dir / "indexes", "people", spec)
    arguments = ["query", "facts", "--url", url, "--also", "people", *ARGUMENTS, " London"]
    printed = CliRunner().invoke(commands, arguments).stdout
    assert [query.index for query, *_ in broker.queries] == ["facts", "people"]
    assert printed.index("index facts") < printed.index("index people")
    answers = json.loads(CliRunner().invoke(commands, [*arguments, "--json"]).stdout)
    assert [answer["index"] for answer in answers] == ["facts", "people"]


def test_several_directories_answer_side_by_side(asked: list[AttributionQuery], tmp_path: Path) -> None:
    arguments = ["query", str(tmp_path / "a"), "--also", str(tmp_path / "b"), *ARGUMENTS, " London"]
    printed = CliRunner().invoke(commands, arguments).stdout
    assert len(asked) == 2
    assert printed.index("index a") < printed.index("index b")


@pytest.mark.parametrize("again", ["./facts", "other/../facts", "link", "{here}/facts"])
def test_a_directory_that_is_named_twice_in_other_words_is_refused(
    again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("facts", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("facts")
    again = again.format(here=tmp_path)
    result = CliRunner().invoke(commands, ["query", "facts", *ARGUMENTS, " London", "--also", again])
    assert isinstance(result.exception, InvalidInput)
    assert f"got {again!r} which is the directory of 'facts'" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--also", "facts"], "each index once"),
        (["--also", "people", "--format", "csv"], "no --output, --link or CSV"),
        (["--also", "people", "--url", "http://127.0.0.1:9", "--link"], "no --output, --link or CSV"),
    ],
)
def test_what_several_indexes_do_not_go_with_is_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(commands, ["query", "facts", *ARGUMENTS, " London", *options])
    assert isinstance(result.exception, InvalidInput) and message in str(result.exception)
