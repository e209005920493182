"""The examples run anywhere, and end in results that are as good as they claim."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.processes import run_script

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "from_model_to_finding.ipynb"
FINDING = r"(\d+) wrong answers; the best document is about a namesake: (\d+)%, by chance (\d+)%"
UNLEARNED = r"^  ([+-]\d\.\d{4})  (a random document)?"


def run_example(name: str, directory: Path) -> list[str]:
    """Runs an example in an empty directory, where it leaves nothing, and returns the lines that it prints."""
    lines = run_script(ROOT / "examples" / f"{name}.py", home=directory).splitlines()
    assert [path for path in directory.iterdir() if not path.name.startswith(".")] == []
    return lines


def read_numbers(line: str) -> dict[str, float]:
    """Returns the numbers of a line such as "AUPRC: influence 0.43, BM25 0.52"."""
    return {name: float(number) for name, number in re.findall(r"([\w-]+) (\d+\.\d+)", line)}


def printed(notebook: nbformat.NotebookNode) -> str:
    """Returns what the cells of a notebook have printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def require_finding(text: str) -> None:
    """Fails unless namesakes are found far more often than by chance, and unlearning one proves it."""
    found = re.search(FINDING, text)
    assert found is not None
    count, share, chance = map(int, found.groups())
    assert count >= 3
    assert share > 5 * chance > 0
    effects = [
        (float(change), bool(random))
        for change, random in re.findall(UNLEARNED, text.rpartition("Right is")[2], re.MULTILINE)
    ]
    assert len(effects) == 4
    document, *controls = [change for change, _ in effects]
    assert [random for _, random in effects] == [False, True, True, True]
    assert document < 2 * min(*controls, 0)


def test_training_on_documents_selected_by_influence_helps_more_than_on_random_ones(tmp_path: Path) -> None:
    losses = read_numbers(run_example("data_selection", tmp_path)[-1])
    assert losses.keys() == {"influence", "BM25", "random"}
    assert losses["influence"] < losses["random"]


def test_a_behaviour_finds_poisoned_documents_far_better_than_chance(tmp_path: Path) -> None:
    areas = read_numbers(run_example("poisoned_data", tmp_path)[-1])
    assert areas.keys() == {"influence", "BM25", "chance"}
    assert areas["influence"] > 8 * areas["chance"]


def test_self_influence_finds_wrong_facts_far_better_than_chance(tmp_path: Path) -> None:
    areas = read_numbers(run_example("mislabelled_data", tmp_path)[-1])
    assert areas.keys() == {"self-influence", "loss", "chance"}
    assert areas["self-influence"] > 5 * areas["chance"]


def test_the_notebook_runs_and_comes_to_its_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs.clear()
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    require_finding(printed(notebook))


def test_the_notebook_is_committed_with_its_outputs_and_without_paths_of_a_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    require_finding(printed(notebook))
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert "/tmp/" not in NOTEBOOK.read_text()


def test_the_readme_has_the_last_line_of_every_script() -> None:
    readme = (ROOT / "examples" / "README.md").read_text()
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "support"}
    for script in scripts:
        _, found, section = readme.partition(f"python -m examples.{script}")
        assert found
        assert len(read_numbers(section.partition("```\n\n")[0].strip().splitlines()[-1])) == 3
