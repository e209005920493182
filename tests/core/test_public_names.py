"""The names that users of the library import, and what their signatures need."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pydantic import BaseModel

import bergson_core
from bergson_core.schemas.base import ResultModel, Spec

PUBLIC_NAMES = """
    AdafactorNormalizer AdamNormalizer Answer AppendSpec AttributionIndex AttributionQuery BackgroundScores BuildSpec
    Chunk ColumnsSpec Control DatasetSpec DocumentReport Effect Estimate Evaluation EvaluationQuery EvaluationSpec
    Executor GradientCollector GradientProcessor GradientSpec GroupEffect GroupMember IndexCallback Interval
    KfacNormalizer LanguageModel LeftOutDocument LocalExecutor Manifest Measured Normalizer PreferencePair Progress
    QueryChange QueryEcho QueryWarning Range RayExecutor Rescored ResultGroup ResultRow Retrieval ScoreTotals
    ScoringSpec SearchSpec SizesBytes TimingMs Together
    TokenInfluence Tokens TrainingSchedule TrainingSpec UnlearnPreview UnlearnSpec Unlearner Verification
    Verified VerifySpec WatchedQuery WordMatch
    __version__ append_documents build_index collect_gradients compact_index errors estimate_build
    evaluate_index find_document_numbers fit_processor fit_profile group_near_duplicates load_model
    preview_unlearning read_manifest relocate_index score_behaviour score_corpus score_self_influence
    take_down_document to_dataset top_documents
    write_score_array write_table
    ScoreSum sum_scores
    GroupTotal InfluenceTotals TotalsQuery TotalsSpec influence_totals
""".split()

LATE_IMPORTS = {"pa": pa, "pd": pd}
"""Names in annotations whose modules are imported when a method is called."""
INTERNAL_TYPES = {
    # What an executor of one's own would deal in.
    *("Documents", "Searcher", "ShardBuilder", "ShardStep", "ShardTask"),
    # Parts of a manifest, which `read_manifest` returns and nobody makes.
    *("FileEntry", "ModuleEntry", "NoticeEntry", "ProfileEntry", "SearchEntry", "ShardEntry", "TakedownHead"),
    # Parts of an index, of a processor and of a model, which their methods hand out and nobody makes.
    *(
        "CheckpointWeights",
        "ModelFiles",
        "Behaviours",
        "Profile",
        "RowCollector",
        "Shard",
        "TrackedModule",
        "QueryAnswerer",
        "Rescorer",
        "Verifier",
        "WordOrder",
    ),
    # In `bergson_core.errors`.
    "BergsonError",
}


def test_the_public_names_are_these() -> None:
    assert sorted(bergson_core.__all__) == sorted(PUBLIC_NAMES)


def test_completion_shows_the_public_names_and_no_others() -> None:
    assert dir(bergson_core) == sorted(PUBLIC_NAMES)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_public_name_can_be_imported_and_has_a_docstring(name: str) -> None:
    exported = getattr(bergson_core, name)
    assert inspect.getdoc(exported)


def test_the_types_are_marked_and_the_version_and_errors_are_reachable() -> None:
    assert (resources.files("bergson_core") / "py.typed").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", bergson_core.__version__)
    assert issubclass(bergson_core.errors.InvalidInput, bergson_core.errors.BergsonError)


def test_each_type_that_a_public_signature_needs_is_public() -> None:
    exported = {getattr(bergson_core, name) for name in PUBLIC_NAMES if name != "__version__"}
    needed = {
        kind.__name__: where
        for where, annotation in iter_annotations()
        for kind in iter_classes(annotation)
        if kind.__module__.startswith("bergson_core.") and kind not in exported
    }
    assert {name: where for name, where in needed.items() if name not in INTERNAL_TYPES} == {}


@pytest.mark.parametrize("spec", ["facts", None, {"modle": "m"}])
def test_what_is_no_spec_is_invalid_input(spec: Any, tmp_path: Path) -> None:
    with pytest.raises(bergson_core.errors.InvalidInput, match=r"BuildSpec|model: required, but missing"):
        bergson_core.build_index(spec, tmp_path / "index")
    with pytest.raises(bergson_core.errors.InvalidInput, match=r"BuildSpec|model: required, but missing"):
        bergson_core.estimate_build(spec)
    with pytest.raises(bergson_core.errors.InvalidInput, match=r"AppendSpec|modle"):
        bergson_core.append_documents(tmp_path / "index", spec)


def test_each_field_of_a_public_model_is_described() -> None:
    models = [
        exported
        for name in PUBLIC_NAMES
        if inspect.isclass(exported := getattr(bergson_core, name)) and issubclass(exported, BaseModel)
    ]
    undescribed = {
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description
        and not (inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel))
    }
    assert models
    assert not undescribed


def iter_annotations() -> Iterator[tuple[str, Any]]:
    """Yields each annotation and its place: of public functions, of public classes, methods and fields of specs."""
    for name in PUBLIC_NAMES:
        exported = getattr(bergson_core, name)
        if inspect.isfunction(exported):
            yield from hints_of(exported, name)
        elif inspect.isclass(exported):
            if issubclass(exported, Spec | ResultModel):
                yield from hints_of(exported, name)
            for member in vars(exported):
                method = getattr(
                    inspect.getattr_static(exported, member), "__func__", getattr(exported, member)
                )
                if inspect.isfunction(method) and (not member.startswith("_") or member == "__init__"):
                    yield from hints_of(method, f"{name}.{member}")


def hints_of(annotated: Callable[..., Any], where: str) -> Iterator[tuple[str, Any]]:
    for parameter, annotation in typing.get_type_hints(annotated, localns=LATE_IMPORTS).items():
        if not parameter.startswith("_"):
            yield f"{where}.{parameter}", annotation


def iter_classes(annotation: Any) -> Iterator[type]:
    """Yields the classes in an annotation such as `dict[str, Range | None]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        yield annotation
    for part in typing.get_args(annotation):
        for inner in part if isinstance(part, list | tuple) else [part]:
            yield from iter_classes(inner)
