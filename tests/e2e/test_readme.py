"""The examples of README.md and docs/ run as they are printed, with a tiny model in place of the demo's."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def code_blocks(document: str, language: str) -> list[str]:
    """Returns the code blocks of a Markdown document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


*_LIBRARY_EXAMPLES, SERVICE_EXAMPLE = code_blocks("README.md", "python")
LIBRARY_EXAMPLE = "\n".join(_LIBRARY_EXAMPLES)
(COMMANDS,) = (block for block in code_blocks("README.md", "sh") if "bergson " in block)
GRADIENT_EXAMPLES, CORPUS_EXAMPLES, INDEX_EXAMPLES, CLIENT_EXAMPLES, EVALUATION_EXAMPLES = (
    "\n".join(code_blocks(f"docs/{name}.md", "python"))
    for name in ("gradients", "corpus", "changing-an-index", "client", "evaluating")
)
(CURL_CALLS,) = (block for block in code_blocks("docs/service.md", "sh") if "curl" in block)
EVALUATION_COMMANDS = code_blocks("docs/evaluating.md", "sh")[0]


RUN_COMMANDS = """
import sys
from service.cli import main
for words in {!r}:
    sys.argv = words
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""


def run_commands(run_python: Callable[[str], str], home: Path, block: str, code: str = "") -> str:
    """Runs commands of `bergson`, and then `code`, in one process, since importing torch takes seconds.

    The first line of the block names a directory.
    """
    assignment, _, commands = block.replace("\\\n", " ").strip().partition("\n")
    name, _, directory = assignment.partition("=")
    commands = commands.replace(f"${name}", directory.replace("~", str(home)))
    return run_python(RUN_COMMANDS.format([shlex.split(command) for command in commands.splitlines()]) + code)


def test_the_library_example_gives_a_projected_gradient_for_each_module(home: Path, run_python):
    assert run_python(LIBRARY_EXAMPLE).count("(1, 16, 16)") == 8


def test_the_examples_of_gradients_run_in_order(home: Path, run_python):
    output = run_python(GRADIENT_EXAMPLES).splitlines()
    heads, numbers, best_pair, _, results, mixing, *_, shards, estimate = output
    assert re.match(r"-?\d\.\d+ Ada", best_pair)
    assert "dense.head_0" in heads
    assert numbers.split()[0] == str(8 * 16 * 16)
    assert len(re.findall(r"'\d+'", results)) == 3
    assert 0 < float(mixing) < 1
    assert shards == "1"
    assert len([float(number) for number in estimate.split()]) == 4


def test_the_examples_of_a_whole_corpus_run_in_order(home: Path, run_python):
    chosen, answer, behaviour, totals, *sums, odd, groups = run_python(CORPUS_EXAMPLES).splitlines()
    assert len(re.findall(r"'doc-\d+'", answer)) == 3
    assert len(re.findall(r"'doc-\d+'", behaviour)) == 5
    assert len(sums) == 3 and all(re.search(r" \d+ -?[\d.]+ (None|\()", line) for line in sums)
    assert len(re.findall(r"'doc-\d+'", chosen)) == len(re.findall(r"'doc-\d+'", odd)) == 5
    assert totals.count("'sum'") == 3
    assert len(re.findall(r"\d+", groups)) == 5
    assert (home / "scores.parquet").is_file()


def test_the_examples_of_a_changing_index_run_in_order(home: Path, run_python):
    report, chunk, *changes = run_python(INDEX_EXAMPLES).splitlines()
    assert "left_out=1" in report and "chunked=1" in report
    assert re.fullmatch(r"long#\d+ long \d+ \d+", chunk)
    assert " ".join(changes).split() == ["2", "1", "new-1", "True", "True"]


def test_the_examples_of_an_evaluation_run_in_order(home: Path, run_python):
    output = run_commands(run_python, home, EVALUATION_COMMANDS, EVALUATION_EXAMPLES)
    assert "20 documents" in output and "queries; 95 % intervals in brackets" in output
    assert json.loads((home / "measured.json").read_text())["methods"].keys() == {
        "index",
        "random",
        "bm25",
        "gold",
    }
    assert re.fullmatch(r"Retrieval\(mrr=.*\) log_probability=Interval\(.*\).*", output.splitlines()[-1])


def test_the_commands_of_the_readme_build_and_query_an_index(home: Path, run_python):
    output = run_commands(run_python, home, COMMANDS)
    assert "20 documents" in output
    assert len(re.findall(r"doc-\d", output)) == 3


def test_the_service_example_builds_over_http_and_prints_the_answer(home: Path, run_python, start_service):
    url = start_service(allowed_roots=home / ".cache").url
    output = run_python(SERVICE_EXAMPLE.replace("http://127.0.0.1:8000", url))
    assert "stage='done'" in output
    assert [line.split()[0] for line in output.splitlines()[-3:]] == ["1", "2", "3"]


def test_the_examples_of_the_client_run_in_order(home: Path, run_python, start_service):
    url = start_service(allowed_roots=home / ".cache").url
    code = CLIENT_EXAMPLES.replace("http://127.0.0.1:8000", url)
    lines = run_python(code).splitlines()
    assert lines[0].startswith("queued") and any(line.startswith("succeeded done") for line in lines)
    assert "20 rows" in lines and any(line.startswith("409 index_exists") for line in lines)
    assert lines[-7:-4] == [line for line in lines if re.match(r"[123] -?\d", line)]
    assert lines[-4:-2] == ["Berin Birchall has retired.", "people"]
    assert [line.rsplit(" ", 1)[0] for line in lines[-2:]] == ["Berin Birchall", "Ada Lovelace"]


def test_the_calls_by_curl_build_an_index_and_query_it(home: Path, run, start_service, require):
    require("curl")
    url = start_service(allowed_roots=home / ".cache").url
    *events, answer = run("sh", "-ec", CURL_CALLS.replace("http://127.0.0.1:8000", url)).splitlines()
    assert '"state":"succeeded"' in "".join(events)
    assert len(json.loads(answer)["results"]) == 3
