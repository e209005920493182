"""`bergson query` prints the warnings of an answer on standard error, and the answer alone on standard output."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from bergson_core.attribution.index import AttributionIndex
from bergson_core.schemas.query import AttributionQuery
from service.cli import app
from tests.service.fake_broker import make_answer
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
    result = CliRunner().invoke(app, ["query", str(tmp_path), *ARGUMENTS, "London", *output])
    assert result.exit_code == 0
    assert result.stderr == "warning: no space before it; probably meant: ' London'\n"
    assert "warning:" not in result.stdout
    if output:
        assert json.loads(result.stdout)["warnings"][0]["suggestion"] == " London"
    assert CliRunner().invoke(app, ["query", str(tmp_path), *ARGUMENTS, " London", *output]).stderr == ""


def test_join_is_an_option(asked: list[AttributionQuery], tmp_path: Path) -> None:
    CliRunner().invoke(app, ["query", str(tmp_path), *ARGUMENTS, "London", "--join", "space"])
    CliRunner().invoke(app, ["query", str(tmp_path), *ARGUMENTS, "London"])
    assert [query.join for query in asked] == ["space", "exact"]


@pytest.mark.parametrize("output", [[], ["--format", "csv"], ["--json"]], ids=["table", "csv", "json"])
def test_rescore_is_an_option_and_exact_scores_are_told_from_others(
    asked: list[AttributionQuery], tmp_path: Path, output: list[str]
) -> None:
    arguments = ["query", str(tmp_path), *ARGUMENTS, " London", *output]
    rescored = CliRunner().invoke(app, [*arguments, "--rescore", "20"])
    plain = CliRunner().invoke(app, arguments)
    assert [query.rescore for query in asked] == [20, None]
    if "--json" in output:
        results = [json.loads(result.stdout)["results"][0] for result in (rescored, plain)]
        assert [result["exact"] for result in results] == [True, False]
    else:
        assert "exact" in rescored.stdout
        assert "exact" not in plain.stdout
    refused = CliRunner().invoke(app, [*arguments, "--rescore", "1001"])
    assert refused.exit_code == 2
    assert "less than or equal to 1000" in refused.stderr
