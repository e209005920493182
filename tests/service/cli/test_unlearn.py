"""`bergson unlearn` previews what unlearning documents of an index on disk, or of a service, would do."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bergson_core.attribution.groups import unlearning_preview
from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import InvalidInput
from bergson_core.schemas.unlearning.results import UnlearnPreview
from bergson_core.schemas.unlearning.spec import UnlearnSpec
from service.cli import app as commands
from service.openapi import examples

PREVIEW = UnlearnPreview.model_validate(examples.JOB_UNLEARNED["unlearning"])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[UnlearnSpec, int]]:
    """Returns what an index is asked, which answers at once."""
    specs: list[tuple[UnlearnSpec, int]] = []

    def run_preview(index: object, spec: UnlearnSpec, max_documents: int, report: object) -> UnlearnPreview:
        specs.append((spec, max_documents))
        return PREVIEW

    monkeypatch.setattr(AttributionIndex, "open", lambda path, **options: path)
    monkeypatch.setattr(unlearning_preview, "run_preview", run_preview)
    return specs


def run(directory: Path, *options: str, queries: str | None = None, control: str | None = None) -> Result:
    lists = {"queries": queries or json.dumps(examples.UNLEARN_IDS["queries"][0]), "control": control}
    arguments = ["unlearn", str(directory)]
    for name, text in lists.items():
        if text is not None:
            (directory / name).write_text(text, encoding="utf-8")
            arguments += [f"--{name}", str(directory / name)]
    return CliRunner().invoke(commands, [*arguments, *options])


def test_documents_and_queries_are_given_as_options_and_files(
    asked: list[tuple[UnlearnSpec, int]], tmp_path: Path
) -> None:
    control = json.dumps(examples.UNLEARN_IDS["control"][0]) + "\n\n"
    options = ("--learning_rate", "0.5", "--max_documents", "7")
    result = run(tmp_path, "--ids", "doc-17", "--ids", "doc-40", *options, control=control)
    assert result.exit_code == 0, result.output
    assert asked == [(UnlearnSpec(**examples.UNLEARN_IDS, learning_rate=0.5), 7)]
    lines = result.stdout.splitlines()
    assert "2 documents unlearned together" in lines[0]
    assert any("-2.9300" in line and "Ada Lovelace was born in London" in line for line in lines)
    assert any("control" in line and "100 degrees" in line for line in lines)
    assert lines[-1] == "mean change of the control queries: -0.0200 nats"


def test_a_filter_is_json_and_the_result_is_printed_as_json_or_csv(
    asked: list[tuple[UnlearnSpec, int]], tmp_path: Path
) -> None:
    result = run(tmp_path, "--filter", '{"source": ["wiki"]}', "--format", "json")
    assert json.loads(result.stdout) == PREVIEW.model_dump(mode="json")
    assert asked[0][0].filter == {"source": ("wiki",)}
    control = json.dumps(examples.UNLEARN_IDS["control"][0])
    result = run(tmp_path, "--filter", '{"source": "wiki"}', "--format", "csv", control=control)
    header, row, control_row = result.stdout.splitlines()
    assert header == "list,prompt,completion,before,after,log_probability,probability"
    assert row == "queries,Ada Lovelace was born in, London,-0.12,-3.05,-2.93,-0.84"
    assert control_row.startswith("control,Water boils at, 100 degrees,-0.31")


@pytest.mark.parametrize(
    ("options", "files", "message"),
    [
        ((), {}, "either `ids` or `filter`"),
        (("--ids", "a", "--filter", "{}"), {}, "filter: expected at least 1|either"),
        (("--ids", "a", "--ids", "a"), {}, "expected each document once"),
        (("--filter", "x"), {}, "--filter is not JSON"),
        (("--ids", "a"), {"queries": "\n"}, "has no queries"),
        (("--ids", "a"), {"queries": "{}\n{"}, "line 2 of .* is not JSON"),
        (("--ids", "a"), {"queries": "[]"}, "line 1 of .* is list; expected an object"),
        (("--ids", "a"), {"queries": '\n{"prompt": "a"}'}, "^line 2 of .*queries: completion: "),
        (
            ("--ids", "a"),
            {
                "queries": '{"prompt": "a", "completion": " b"}',
                "control": '\n{"prompt": "a", "completion": " b"}',
            },
            "^line 2 of .*control: .* got the same as line 1 of .*queries$",
        ),
        (("--ids", "a"), {"control": ""}, "--control: .* has no queries"),
    ],
)
def test_what_is_wrong_is_an_error_that_names_the_option(
    asked: list[Any], tmp_path: Path, options: tuple[str, ...], files: dict[str, str], message: str
) -> None:
    result = run(tmp_path, *options, **files)
    assert isinstance(result.exception, InvalidInput)
    with pytest.raises(InvalidInput, match=message):
        raise result.exception
    assert asked == []
