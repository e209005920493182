"""Runs a model on a few tokens, and finds the modules that its forward pass never reaches.

A module may lie in a model and never be called: Mamba multiplies with the weight of `dt_proj` itself, and models have
heads that are used in training only. No hook sees such a module, so that it cannot be tracked.

Legend: n samples, s positions.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

from bergson_core.models.hooks import freeze, unwrap_model
from bergson_core.models.modules import TrackedModule, find_output_head
from bergson_core.models.offloading import find_device

_SAMPLES: Final = 4
_POSITIONS: Final = 8


def make_probe_batch(model: nn.Module) -> Tensor:
    """Returns token ids [n, s] that the model knows, different ones in each sample."""
    inner = unwrap_model(model)
    config: Any = getattr(inner, "config", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    head = find_output_head(model)
    vocabulary = getattr(text_config, "vocab_size", None) or getattr(head, "out_features", None) or 2
    limit = getattr(text_config, "max_position_embeddings", None) or 0
    positions = min(_POSITIONS, limit) if limit > 0 else _POSITIONS  # XLNet says -1 where there is no limit
    ids = torch.arange(1, 1 + _SAMPLES * positions) % vocabulary
    return ids.view(_SAMPLES, positions).to(find_device(model))


def find_unreached_modules(model: nn.Module, modules: Iterable[TrackedModule]) -> frozenset[str]:
    """Returns the names of those modules that a forward pass never reaches.

    A module that is reached only sometimes is not among them, such as an expert: it has a sibling, with a name that
    differs in numbers only, that is reached by some of the tokens and not by others. A model that does not take token
    ids has no such modules.
    """
    modules = list(modules)
    input_ids = make_probe_batch(model)
    rows_by_module: dict[nn.Module, int] = {}

    def count_rows(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if first is None:
            rows = 0
        else:
            rows = first[..., 0].numel() if first.is_floating_point() else first.numel()
        rows_by_module[module] = max(rows, rows_by_module.get(module, 0))

    watched = {watched for tracked in modules for watched in (tracked.module, *tracked.tied_modules)}
    hooks = [module.register_forward_hook(count_rows, with_kwargs=True) for module in watched]
    try:
        with torch.no_grad(), freeze(model):
            model(input_ids=input_ids, use_cache=False)
    except (AttributeError, TypeError):
        return frozenset()
    finally:
        for hook in hooks:
            hook.remove()
    unreached = [
        tracked.name
        for tracked in modules
        if not any(module in rows_by_module for module in (tracked.module, *tracked.tied_modules))
    ]
    routed = {
        _without_numbers(tracked.name)
        for tracked in modules
        if rows_by_module.get(tracked.module, input_ids.numel()) < input_ids.numel()
    }
    return frozenset(name for name in unreached if _without_numbers(name) not in routed)


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "", name)
