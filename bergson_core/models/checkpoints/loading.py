"""Loads the checkpoints of a training run, one after the other, as one model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bergson_core.errors import InvalidInput
from bergson_core.models.files.checkpoint_weights import CheckpointWeights, named_tensors, store_weights
from bergson_core.models.files.fingerprint import ModelFiles
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build_parts.checkpoints import split_revision

CheckpointSource = tuple[str, str | None]
"""(hub id or directory, revision) of a checkpoint."""


def checkpoint_prefix(number: int) -> str:
    """Returns what the names of a checkpoint's modules, and of its files, begin with."""
    return f"checkpoint-{number}."


def checkpoint_sources(
    names: Sequence[str], revisions: Sequence[str | None] = ()
) -> tuple[CheckpointSource, ...]:
    """Returns where to load checkpoints from.

    Args:
        names: What `BuildSpec.models` calls them.
        revisions: The commits of those that are on the hub, where they are known; None for the others.
    """
    sources = [split_revision(name) for name in names]
    commits = revisions or [None] * len(sources)
    return tuple((name, commit or own) for (name, own), commit in zip(sources, commits, strict=True))


def load_checkpoints(
    sources: Sequence[CheckpointSource], load: Callable[[str, str | None], LanguageModel]
) -> LanguageModel:
    """Returns the last of several checkpoints, whose weights `LanguageModel.checkpoints` exchanges for the others'.

    One of them is in memory at a time.

    Args:
        sources: The checkpoints, the earliest first.
        load: Loads one of them.

    Raises:
        ModelNotFound: One of them cannot be loaded.
        InvalidInput: They are of different shapes, or have different tokenizers; or one has a device map.
    """
    weights: list[Mapping[str, Tensor]] = []
    revisions: list[str | None] = []
    hashes: dict[str, str] = {}
    first_form: _Form | None = None
    model: LanguageModel | None = None
    for number, source in enumerate(sources):
        model = None  # the one before is freed first
        model = load(*source)
        if model.has_device_map:
            raise InvalidInput("the checkpoints of models take turns on one device: expected no device map")
        form = _Form.of(model)
        first_form = first_form or form
        first_form.require_same(form, sources[0], source, number)
        weights.append(store_weights(model.model, weights[-1] if weights else {}))
        revisions.append(model.revision)
        if model.files is not None:
            names = model.files.sha256_by_name.items()
            hashes |= {f"{checkpoint_prefix(number)}{name}": sha256 for name, sha256 in names}
    if model is None:
        raise InvalidInput("expected at least one checkpoint")
    files = ModelFiles((), hashes)
    checkpoints = CheckpointWeights(model.model, weights, revisions)
    return replace(model, sha256=files.sha256, files=files, checkpoints=checkpoints)


@dataclass(frozen=True)
class _Form:
    """What the checkpoints of a run have in common."""

    architecture: str
    shapes: Mapping[str, tuple[int, ...]]
    tokenizer: str
    vocabulary: Mapping[str, int]
    chat_template: Any
    adapter_base: str | None

    @classmethod
    def of(cls, model: LanguageModel) -> "_Form":
        tokenizer = model.tokenizer
        assert tokenizer is not None  # load_model always gives one
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return cls(
            architecture=type(model.model).__name__,
            shapes={name: tuple(tensor.shape) for name, tensor in named_tensors(model.model).items()},
            tokenizer=backend.to_str() if backend is not None else type(tokenizer).__name__,
            vocabulary=tokenizer.get_vocab(),
            chat_template=tokenizer.chat_template,
            adapter_base=model.adapter_base,
        )

    def require_same(
        self, other: "_Form", source: CheckpointSource, other_source: CheckpointSource, number: int
    ) -> None:
        """Raises `InvalidInput` unless another checkpoint has the same form as the first one."""
        if problem := self._find_difference(other):
            raise InvalidInput(
                f"models.{number}: {_describe(other_source)} is not a checkpoint of the run of {_describe(source)}: "
                f"{problem}; expected models that differ in their weights alone"
            )

    def _find_difference(self, other: "_Form") -> str | None:
        """Returns what is different about another form, as a clause, or None."""
        if self.architecture != other.architecture:
            return f"it is a {other.architecture}, not a {self.architecture}"
        for name in sorted(self.shapes.keys() | other.shapes.keys()):
            shape, other_shape = self.shapes.get(name), other.shapes.get(name)
            if shape != other_shape:
                return f"{name} is {_shape(other_shape)} in it and {_shape(shape)} in the first"
        if self.vocabulary != other.vocabulary:
            return "its tokenizer has another vocabulary"
        if self.tokenizer != other.tokenizer:
            return "its tokenizer has other settings"
        if self.chat_template != other.chat_template:
            return "it has another chat template"
        if self.adapter_base != other.adapter_base:
            return "its adapters are of another model"
        return None


def _describe(source: CheckpointSource) -> str:
    name, revision = source
    return name if revision is None else f"{name}@{revision}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
