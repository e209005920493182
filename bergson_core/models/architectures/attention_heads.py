"""Finds which features of the projections of attention belong to which head.

Legend: h heads of the queries, k heads of the keys and values, d features of a head.

The projections to queries, keys and values have the features of the heads on their output side, and the projection back
to the residual stream has those on its input side. Where one module computes queries, keys and values, the class of the
block of attention says in which order: head by head, or all queries first. With as many heads of keys and values as of
queries, a head's part has the three of them. With fewer, queries have parts of their own, and so has each head of keys
and values.

The bias of the projection back to the residual stream belongs to no head. It is a part of its own, without weights.

An adapter (LoRA) has the heads on one of its two modules, the one that ends or begins at the heads; the other one is
left whole.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from bergson_core.errors import InvalidInput
from bergson_core.models.architectures.module_sets import Blocks, Shape, find_original

Side = Literal["output", "input"]
Range = tuple[int, int]
"""Features [start, end) of a side of a module."""
Ranges = dict[str, tuple[Range, ...]]
"""The features of each part of a module, by the part's label."""

BIAS_LABEL: Final = "bias"
_LABEL: Final = re.compile(r"\.(head_\d+|key_value_head_\d+|bias)$")
_QUERIES: Final = frozenset({"q_proj", "query", "q_lin", "wq", "Wq"})
_KEYS_AND_VALUES: Final = frozenset(
    {"k_proj", "v_proj", "key", "value", "k_lin", "v_lin", "wk", "wv", "Wk", "Wv"}
)
_OUTPUTS: Final = frozenset({"o_proj", "out_proj", "dense", "c_proj", "out_lin", "wo"})


@dataclass(frozen=True)
class HeadPart:
    """The features of one head in a module.

    Attributes:
        module_name: Name of the whole module.
        label: What the part is called, such as `head_3`.
        side: The side of the module that has heads. The part has all features of the other side.
        ranges: The features of the part on that side, in order.
    """

    module_name: str
    label: str
    side: Side
    ranges: tuple[Range, ...]

    @property
    def name(self) -> str:
        """The name of the part as a module of its own."""
        return f"{self.module_name}.{self.label}"

    @property
    def size(self) -> int:
        """The number of features of the part on its side."""
        return sum(end - start for start, end in self.ranges)

    def take(self, features: Tensor, side: Side, dim: int = -1) -> Tensor:
        """Returns the part's own of the features of one side, along a dimension."""
        if side != self.side:
            return features
        parts = [features.narrow(dim, start, end - start) for start, end in self.ranges]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim) if parts else features.narrow(dim, 0, 0)


@dataclass(frozen=True)
class _Heads:
    """How many heads a block of attention has, h and k; d is None where neither block nor config state it."""

    queries: int
    keys: int
    features: int | None


def whole_module_name(name: str) -> str:
    """Returns the name of the module that a part of this name would be of; another name as it is."""
    return _LABEL.sub("", name)


def find_head_parts(
    name: str, blocks: Blocks, shapes: Mapping[str, Shape], config: Any
) -> tuple[HeadPart, ...]:
    """Returns the parts of a module, or () for a module without heads: one outside attention, or half of an adapter.

    Args:
        name: The name of the module.
        blocks: The blocks of the model.
        shapes: (o, i) of each module that can be tracked, by name.
        config: The configuration of the model's text part, or None.

    Raises:
        InvalidInput: It is not known where the heads are in a module of attention.
    """
    # A module may be called as blocks are, such as c_attn: the block is the one around it.
    parent, _, own_name = find_original(name, shapes).removesuffix(".base_layer").rpartition(".")
    found = blocks.find_innermost(parent)
    if found is None or found[0] != "attention":
        return ()
    block = blocks.modules[found[1]]
    side: Side = "input" if own_name in _OUTPUTS else "output"
    if f".lora_{'B' if side == 'input' else 'A'}." in name:
        return ()
    size = shapes[name][side == "input"]
    try:
        ranges = _find_ranges(own_name, block, _read_heads(block, config), size)
    except _Unknown as error:
        raise InvalidInput(
            f"split_heads: it is not known where the heads are in module {name!r} of {type(block).__name__}, whose "
            f"{side} side has {size} features: {error}. Leave the module out with `modules`, or split_heads out"
        ) from None
    return tuple(HeadPart(name, label, side, parts) for label, parts in ranges.items())


class _Unknown(Exception):
    """It is not known where the heads are; the message says what was expected."""


def _find_ranges(own_name: str, block: nn.Module, heads: _Heads, size: int) -> Ranges:
    """Returns the features of each head on the side of a module that has the heads."""
    if own_name in _QUERIES or own_name in _OUTPUTS:
        count = heads.queries
    elif own_name in _KEYS_AND_VALUES:
        count = heads.keys
    else:
        layout = _FUSED.get(type(block).__name__)
        if layout is None:
            raise _Unknown("neither its name nor the class of its block is among those that are known")
        d = _features_of_a_head(heads, size, heads.queries + 2 * heads.keys)
        return layout(block, heads, d)
    d = _features_of_a_head(heads, size, count)
    return {f"head_{head}": ((head * d, (head + 1) * d),) for head in range(count)}


def _features_of_a_head(heads: _Heads, size: int, count: int) -> int:
    """Returns d of a side with `size` features and `count` heads."""
    d = heads.features or size // count
    if d * count != size or d == 0:
        raise _Unknown(f"expected {count} heads of {'some' if heads.features is None else d} features")
    return d


def _read_heads(block: nn.Module, config: Any) -> _Heads:
    """Returns the heads that a block of attention and the configuration state."""
    queries = _first_number(block, config, "num_heads", "num_attention_heads")
    if queries is None:
        raise _Unknown("the configuration of the model states no num_attention_heads")
    keys = _first_number(block, None, "num_kv_heads", "num_key_value_heads", "kv_heads")
    if keys is None and (groups := _first_number(block, None, "num_key_value_groups")) is not None:
        keys = queries // groups
    keys = keys or _first_number(None, config, "num_key_value_heads") or queries
    return _Heads(queries, keys, _first_number(block, config, "head_dim", "head_size"))


def _first_number(block: Any, config: Any, *names: str) -> int | None:
    """Returns the first of some attributes that is a positive number."""
    values = (getattr(owner, name, None) for owner in (block, config) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)


def _head_by_head(_block: nn.Module, heads: _Heads, d: int) -> Ranges:
    """The query, key and value of a head beside each other."""
    if heads.queries != heads.keys:
        raise _Unknown("expected as many heads of keys as of queries")
    return {f"head_{head}": ((3 * head * d, 3 * (head + 1) * d),) for head in range(heads.queries)}


def _queries_first(_block: nn.Module, heads: _Heads, d: int) -> Ranges:
    """The queries of all heads, then all keys, then all values."""
    h, k = heads.queries, heads.keys
    return _join(
        [_nth(head, d) for head in range(h)],
        [_nth(h + head, d) for head in range(k)],
        [_nth(h + k + head, d) for head in range(k)],
    )


def _group_by_group(_block: nn.Module, heads: _Heads, d: int) -> Ranges:
    """For each head of keys: its queries, its key, its value."""
    each = heads.queries // heads.keys
    width = each + 2
    return _join(
        [_nth(head // each * width + head % each, d) for head in range(heads.queries)],
        [_nth(group * width + each, d) for group in range(heads.keys)],
        [_nth(group * width + each + 1, d) for group in range(heads.keys)],
    )


def _falcon(block: Any, heads: _Heads, d: int) -> Ranges:
    if block.new_decoder_architecture:
        return _group_by_group(block, heads, d)
    return (_queries_first if block.multi_query else _head_by_head)(block, heads, d)


def _bigcode(block: Any, heads: _Heads, d: int) -> Ranges:
    return (_queries_first if block.multi_query else _head_by_head)(block, heads, d)


def _nth(number: int, d: int) -> Range:
    return number * d, (number + 1) * d


def _join(queries: list[Range], keys: list[Range], values: list[Range]) -> Ranges:
    """Returns the parts of a module that has all three, as the head of the file says."""
    if len(queries) == len(keys):
        return {f"head_{head}": parts for head, parts in enumerate(zip(queries, keys, values, strict=True))}
    shared = {f"key_value_head_{head}": parts for head, parts in enumerate(zip(keys, values, strict=True))}
    return {f"head_{head}": (query,) for head, query in enumerate(queries)} | shared


_FUSED: Final[Mapping[str, Callable[[Any, _Heads, int], Ranges]]] = {
    "BloomAttention": _head_by_head,
    "FalconAttention": _falcon,
    "FalconFlashAttention2": _falcon,
    "GPT2Attention": _queries_first,
    "GPTBigCodeAttention": _bigcode,
    "GPTNeoXAttention": _head_by_head,
    "GPTNeoXJapaneseAttention": _head_by_head,
    "MptAttention": _queries_first,
    "PersimmonAttention": _head_by_head,
    "Phi3Attention": _queries_first,
}
"""Where the heads are in a module that computes queries, keys and values, by the class of the block."""
