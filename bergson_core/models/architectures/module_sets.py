"""Finds the modules of a set that `modules` of a build names: `mlp`, `attention` or `down`.

Legend: o output features, i input features, h width of the residual stream.

Architectures name their modules in many ways. What they share is that the name or the class of a block says what the
block is: `self_attn`, `attention.self` and `GPTNeoXAttention`; `mlp`, `feed_forward` and `MixtralSparseMoeBlock`. A
module belongs to the innermost such block around it. A layer that has attention, and no block that is called an MLP, is
one whose MLP has no block of its own (OPT, BERT): the modules beside the attention are the MLP.

A mixture of experts is an MLP, with its routers where these are tracked. A mixer of a state space model (Mamba) is
neither.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, Literal

from torch import nn

from bergson_core.models.architectures.moe import DOWN_PROJECTION
from bergson_core.schemas.build import ModuleSet

BlockKind = Literal["attention", "mlp"]
_NAMES: Final[Mapping[BlockKind, str]] = {
    "attention": r"(.*_)?(attn|att|attention)s?(_block|_layer)?",
    "mlp": r"(.*_)?(mlp|ffn|ff|feed_?forward|moe)s?(_block|_layer)?",
}
"""Expressions that the whole name of a block matches, in lower case."""
_CLASSES: Final[Mapping[BlockKind, str]] = {
    "attention": r".*(Attention|Attn)(Block|Layer)?",
    "mlp": r".*(MLP|Mlp|FFN|FeedForward|MoE|MOE|Moe)(Block|Layer)?",
}
"""Expressions that the whole name of the class of a block matches."""
_WRAPPED: Final = ("base_layer", "original_module")
"""Names that PEFT gives to the module that it has put adapters, or a copy that is trained, in the place of."""

Shape = tuple[int, int]
"""(o, i) of a module."""


def find_module_set(
    set_name: ModuleSet, modules: Mapping[str, nn.Module], shapes: Mapping[str, Shape]
) -> set[str]:
    """Returns the names of the modules of a set, among those that can be tracked.

    The adapters of a module are in the sets of the module.

    Args:
        set_name: `mlp`, `attention`, or `down`: the projections from the hidden features of MLPs back to the residual
            stream.
        modules: All modules of the model by name, in the order in which they were declared.
        shapes: The shape of each module that can be tracked, by name, and of each linear map of fused experts.
    """
    blocks = Blocks(modules)
    kind = "attention" if set_name == "attention" else "mlp"
    originals = {name: find_original(name, shapes) for name in shapes}
    members: dict[str, list[str]] = {}  # of each block of this kind, in the order of `modules`
    places = {name: place for place, name in enumerate(modules)}
    for name in sorted(set(originals.values()), key=lambda name: places.get(name, len(places))):
        block = blocks.find_innermost(name)
        if block is not None and block[0] == kind:
            members.setdefault(block[1], []).append(name)
    if set_name == "down":
        selected = _find_down_projections(members.values(), modules, shapes)
    else:
        selected = set(chain.from_iterable(members.values()))
    return {name for name, original in originals.items() if original in selected}


class Blocks:
    """The blocks of a model that are known to be attention or an MLP; `modules` are all of the model, by name."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self._kinds: dict[str, BlockKind] = {}
        self._kinds_of_children: dict[str, set[BlockKind]] = {}
        for name, module in modules.items():
            if name and (kind := _find_kind(name, module)) is not None:  # a whole model is no block
                self._kinds[name] = kind
                self._kinds_of_children.setdefault(name.rpartition(".")[0], set()).add(kind)

    def find_innermost(self, name: str) -> tuple[BlockKind, str] | None:
        """Returns kind and name of the innermost block that the module `name` is, or is in."""
        while name:
            parent, _, own_name = name.rpartition(".")
            if (kind := self._kinds.get(name)) is not None:
                return kind, name
            if own_name.isdigit() and self._kinds_of_children.get(name) == {"attention"}:
                return "mlp", name
            name = parent
        return None


def _find_kind(name: str, module: nn.Module) -> BlockKind | None:
    """Returns what the class of a block says that it is, or else its name."""
    own_name = name.rpartition(".")[2].lower()
    for patterns, text in ((_CLASSES, type(module).__name__), (_NAMES, own_name)):
        for kind, pattern in patterns.items():
            if re.fullmatch(pattern, text):
                return kind
    return None


def find_original(name: str, shapes: Mapping[str, Shape]) -> str:
    """Returns the name of the module that an adapter, or a copy of PEFT, belongs to; of any other module its own name.

    Of `mlp.down_proj.lora_A.default` it is `mlp.down_proj.base_layer`.
    """
    wrapper = name
    while wrapper := wrapper.rpartition(".")[0]:
        for part in _WRAPPED:
            if f"{wrapper}.{part}" in shapes:
                return f"{wrapper}.{part}"
    return name


def _find_down_projections(
    blocks: Iterable[Sequence[str]], modules: Mapping[str, nn.Module], shapes: Mapping[str, Shape]
) -> set[str]:
    """Returns which modules of MLPs lead back to the residual stream.

    The first module of an MLP reads the residual stream and so has h input features. A module leads back if it has h
    output features and another number of input features. Only where no MLP has such a module, because all MLPs are as
    wide as the residual stream, the last module of each is taken instead.

    Args:
        blocks: The names of the modules of each MLP, in the order in which they were declared.
        modules: All modules of the model by name; fused experts' maps are not among them.
        shapes: The shape of each module in a block.
    """
    leading_back, last_squares = set[str](), set[str]()
    for names in blocks:
        leading_back |= {
            name for name in names if name not in modules and name.split(".")[-2] == DOWN_PROJECTION
        }
        linear = [name for name in names if name in modules]
        h = shapes[linear[0]][1] if linear else 0
        leading_back |= {name for name in linear if shapes[name][0] == h != shapes[name][1]}
        last_squares |= set([name for name in linear[1:] if shapes[name] == (h, h)][-1:])
    return leading_back or last_squares
