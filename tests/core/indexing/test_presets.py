"""Every preset builds an index that answers, and is the same build as one with its values."""

from pathlib import Path

import pytest

from bergson_core import AttributionIndex, build_index
from bergson_core.errors import IndexExists
from bergson_core.schemas.presets import PRESETS, PresetName
from tests.core.helpers import make_spec


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_an_index_that_finds_a_document_by_its_text(
    sources: Path, tmp_path: Path, name: PresetName
) -> None:
    manifest = build_index(make_spec(sources, gradients={}, preset=name), tmp_path / "facts")
    written_out = make_spec(sources, **{"gradients": {}, **PRESETS[name].values})
    assert build_index(written_out, tmp_path / "facts") == manifest
    assert "preset" not in (tmp_path / "facts" / "manifest.json").read_text()
    answer = AttributionIndex.open(tmp_path / "facts").query("Person 3 lives in", " city 3.", top_k=40)
    assert answer.results is not None
    assert len({row.id for row in answer.results}) == 40
    assert "city 3" in (answer.results[0].prompt or "")


def test_another_preset_is_another_build(sources: Path, tmp_path: Path) -> None:
    build_index(make_spec(sources, preset="best"), tmp_path / "facts")
    with pytest.raises(IndexExists, match=r"gradients\.normalizer is 'kfac' there and 'adafactor' here"):
        build_index(make_spec(sources, preset="trackstar"), tmp_path / "facts")
