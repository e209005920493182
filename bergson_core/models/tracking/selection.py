"""Selects the modules of a model to track: by default, by a set or an expression, by name, and split into heads."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from torch import nn

from bergson_core.errors import InvalidInput
from bergson_core.models.architectures.attention_heads import (
    BIAS_LABEL,
    HeadPart,
    find_head_parts,
    whole_module_name,
)
from bergson_core.models.architectures.module_sets import Blocks, find_module_set
from bergson_core.models.modules import (
    TrackedModule,
    active_adapter_names,
    find_output_head,
    find_trackable_modules,
    is_within,
    named_modules,
    natural_sort_key,
)
from bergson_core.schemas.build import ALL_MODULES, MODULE_SETS, ModuleSet
from bergson_core.utils.safe_regex import find_matching_names


def select_modules(
    model: nn.Module,
    modules: str | Iterable[str] | None = None,
    *,
    split_heads: bool = False,
    include_bias: bool = False,
) -> dict[str, TrackedModule]:
    """Returns the modules to track, by name, in natural order of the names.

    Args:
        model: The model.
        modules: `mlp`, `attention` or `down`, as in `GradientSpec.modules`; any other regular expression, which is
            searched for in the modules' names; or the exact names, among which may be those of single heads. By
            default, and for `all`, all modules but embeddings and the output head; of a model with adapters (PEFT), the
            active adapters.
        split_heads: Whether each head of a selected module of attention is a module of its own.
        include_bias: Whether biases are tracked too. That of a module whose input side is split is one more module.

    Raises:
        InvalidInput: No module is selected, a name is not that of a module that can be tracked, the expression takes
            too long, or heads are to be split and there are none or it is not known where they are.
    """
    trackable = find_trackable_modules(model)
    if modules is None or isinstance(modules, str):
        selected = _select_by_expression(model, trackable, modules)
        if split_heads:
            selected = _split_heads(model, trackable, selected, include_bias)
    else:
        selected = _select_by_name(model, trackable, set(modules))
        if split_heads:
            selected = _split_each(model, trackable, selected, include_bias)
    return dict(sorted(selected.items(), key=lambda item: natural_sort_key(item[0])))


def _select_by_expression(
    model: nn.Module, trackable: dict[str, TrackedModule], modules: str | None
) -> dict[str, TrackedModule]:
    if modules is None or modules == ALL_MODULES:
        selected = _default_names(model, trackable)
    elif modules in MODULE_SETS:
        return _select_module_set(model, trackable, cast(ModuleSet, modules))
    else:
        selected = find_matching_names(modules, list(trackable))
    if not selected:
        selection = "" if modules is None else f" that {modules!r} selects"
        raise _nothing_to_track(trackable, selection)
    return {name: tracked for name, tracked in trackable.items() if name in selected}


def _select_by_name(
    model: nn.Module, trackable: dict[str, TrackedModule], names: Collection[str]
) -> dict[str, TrackedModule]:
    """Returns the modules of these names, and the parts of modules that are named one by one."""
    whole = {whole_module_name(name) for name in names - trackable.keys()} & trackable.keys()
    parts = _split_each(model, trackable, {name: trackable[name] for name in whole}, include_bias=True)
    nameable = trackable | parts
    if unknown := sorted(names - nameable.keys()):
        raise InvalidInput(
            f"no module that can be tracked is named {unknown[0]!r}; this model has {_abridge(trackable)}"
        )
    if not names:
        raise _nothing_to_track(trackable, "")
    return {name: nameable[name] for name in names}


def _nothing_to_track(trackable: Iterable[str], selection: str) -> InvalidInput:
    return InvalidInput(
        f"nothing to track: expected a Linear, Conv1D or Embedding module or fused experts{selection}; this model has "
        f"{_abridge(trackable)}"
    )


def _split_heads(
    model: nn.Module,
    trackable: Mapping[str, TrackedModule],
    selected: Mapping[str, TrackedModule],
    include_bias: bool,
) -> dict[str, TrackedModule]:
    """Returns the selected modules with the parts of those of attention in their places."""
    split = _split_each(model, trackable, selected, include_bias)
    if not any(tracked.part for tracked in split.values()):
        raise InvalidInput(
            f"split_heads: none of the selected modules is a projection of attention: {_abridge(selected)}; expected "
            "`modules` that selects some, such as attention, or no split_heads"
        )
    return split


def _split_each(
    model: nn.Module,
    trackable: Mapping[str, TrackedModule],
    selected: Mapping[str, TrackedModule],
    include_bias: bool,
) -> dict[str, TrackedModule]:
    """Returns the parts of those modules that have heads, and the other modules as they are."""
    blocks = Blocks(dict(named_modules(model)))
    shapes = {
        name: (tracked.out_features, tracked.in_features)
        for name, tracked in trackable.items()
        if tracked.expert_map is None
    }
    split: dict[str, TrackedModule] = {}
    for name, tracked in selected.items():
        is_whole = tracked.part is None and name in shapes
        parts = find_head_parts(name, blocks, shapes, _text_config(model)) if is_whole else ()
        if include_bias and tracked.has_bias and parts and parts[0].side == "input":
            parts = (*parts, HeadPart(name, BIAS_LABEL, "input", ()))
        split |= {part.name: _take_part(tracked, part) for part in parts} or {name: tracked}
    return split


def _take_part(tracked: TrackedModule, part: HeadPart) -> TrackedModule:
    side = "out_features" if part.side == "output" else "in_features"
    return replace(tracked, name=part.name, part=part, **{side: part.size})


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _select_module_set(
    model: nn.Module, trackable: dict[str, TrackedModule], set_name: ModuleSet
) -> dict[str, TrackedModule]:
    """Returns those modules of a set that are tracked by default. Raises `InvalidInput` where there are none."""
    shapes = {name: (tracked.out_features, tracked.in_features) for name, tracked in trackable.items()}
    by_default = _default_names(model, trackable)
    chosen = by_default & find_module_set(set_name, dict(named_modules(model)), shapes)
    if not chosen:
        names = _abridge([name for name in trackable if name in by_default])
        raise InvalidInput(
            f"modules {set_name!r}: this model has no {MODULE_SETS[set_name]} that can be tracked, it has {names}; "
            "expected a regular expression of the names to track instead, or no `modules` at all"
        )
    return {name: tracked for name, tracked in trackable.items() if name in chosen}


def _default_names(model: nn.Module, trackable: dict[str, TrackedModule]) -> set[str]:
    """Returns the names of the modules that are tracked by default."""
    adapters = active_adapter_names(model)
    if adapters:  # embeddings and the head too, where they were trained in full beside the adapters
        return {name for name in trackable if is_within(name, adapters)}
    head = find_output_head(model)
    return {
        name
        for name, tracked in trackable.items()
        if tracked.module is not head and not isinstance(tracked.module, nn.Embedding)
    }


def _abridge(names: Iterable[str]) -> str:
    """Returns the first names, for a message."""
    names = list(names)
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
