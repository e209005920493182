"""`LanguageModel`: a causal language model with its tokenizer, split into backbone and head where it can be."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import IndexCorrupt, InvalidInput
from bergson_core.models.causality import require_causal
from bergson_core.models.files.checkpoint_weights import CheckpointWeights
from bergson_core.models.files.fingerprint import ModelFiles
from bergson_core.models.files.lora import describe_unsupported
from bergson_core.models.hooks import freeze, unwrap_compiled, unwrap_model
from bergson_core.models.modules import (
    TrackedModule,
    active_adapter_configs,
    find_input_embedding,
    find_output_head,
    find_trackable_modules,
)
from bergson_core.models.offloading import find_device, find_devices
from bergson_core.models.probe import find_unreached_modules
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.build import GradientSpec
from bergson_core.storage.manifest import Manifest
from bergson_core.tokens.token_limits import TokenLimits

_CONTEXT_FIELDS: Final = ("max_position_embeddings", "max_seq_len")
"""Fields of a configuration that state the context; MPT has the second."""


@dataclass(frozen=True)
class LanguageModel:
    """A model with what is needed to run it on text.

    Attributes:
        model: The PyTorch model, which computes logits.
        tokenizer: Its tokenizer; None where documents come as tokens.
        max_tokens: The longest text that it takes, in tokens; None where its configuration does not say.
        backbone: The part below the head. The logits are head(backbone(ids).last_hidden_state), which was checked. None
            where the model is not of that form, or where the head itself is tracked.
        head: The linear map from hidden features to logits; None where `backbone` is.
        sha256: Of all files that decide the weights and the tokens; empty for a model that was not loaded from files.
        revision: The commit of the hub's repository that the model was loaded from; None for a local model.
        adapter_base: The directory of the model that local adapters belong to; None for any other model.
        chat_date: The date that its chat template is told if it asks for today's: that of an index's build. None tells
            it today's.
        files: The hashes of these files; None for a model that was not loaded from files.
        unreached: Names of modules that a forward pass never reaches, so that they cannot be tracked.
        checkpoints: The weights of several checkpoints of the run, of which this is the last; None for one model.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    max_tokens: int | None
    backbone: nn.Module | None
    head: nn.Linear | None
    sha256: str = ""
    revision: str | None = None
    adapter_base: str | None = None
    chat_date: date | None = None
    files: ModelFiles | None = None
    unreached: frozenset[str] = frozenset()
    checkpoints: CheckpointWeights | None = None

    @property
    def device(self) -> torch.device:
        """The device that token ids go to, which is that of the weights unless the model has a device map."""
        return find_device(self.model)

    @property
    def devices(self) -> set[torch.device]:
        """All devices that parts of the model run on."""
        return find_devices(self.model)

    @property
    def has_device_map(self) -> bool:
        """Whether the parts of the model lie on different devices, in the host's memory or on the disk."""
        return hasattr(self.model, "hf_device_map")

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model's weights."""
        return next(self.model.parameters()).dtype

    @property
    def checkpoint_revisions(self) -> tuple[str | None, ...]:
        """The commits of the hub's repository that the checkpoints were loaded from; empty for one model."""
        return () if self.checkpoints is None else self.checkpoints.revisions

    @property
    def parameter_count(self) -> int:
        """The number of the model's weights, biases included."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def select_modules(
        self,
        modules: str | Iterable[str] | None = None,
        *,
        split_heads: bool = False,
        include_bias: bool = False,
    ) -> dict[str, TrackedModule]:
        """Returns the modules to track, by name, without those that a forward pass never reaches.

        Args:
            modules: A regular expression that is searched for in the modules' names, the exact names, or None for the
                default, as in `GradientCollector`.
            split_heads: Whether each head of attention is a module of its own.
            include_bias: Whether biases are tracked too.

        Raises:
            InvalidInput: No module is selected, a name is not that of a module that can be tracked, or a forward pass
                reaches none of the modules that the expression selects, or not the one that is named.
        """
        modules = modules if modules is None or isinstance(modules, str) else list(modules)
        selected = select_modules(self.model, modules, split_heads=split_heads, include_bias=include_bias)
        reached = {
            name: tracked for name, tracked in selected.items() if tracked.module_name not in self.unreached
        }
        has_names = isinstance(modules, list)
        if not reached or (has_names and len(reached) < len(selected)):
            name = next(name for name in selected if name not in reached)
            raise InvalidInput(
                f"nothing to track in module {name!r}: a forward pass of the model never calls it, but uses its weight "
                "in another way or not at all; expected modules that the model calls"
            )
        return reached

    def select_for(self, settings: GradientSpec) -> dict[str, TrackedModule]:
        """Returns what `select_modules` does for the settings of an index."""
        return self.select_modules(
            settings.modules, split_heads=settings.split_heads, include_bias=settings.include_bias
        )

    def for_tracking(self, modules: Iterable[TrackedModule]) -> "LanguageModel":
        """Returns the same model, without the split into backbone and head where one of `modules` is in the head."""
        if any(self.head in (tracked.module, *tracked.tied_modules) for tracked in modules):
            return replace(self, backbone=None, head=None)
        return self


def as_language_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, sha256: str = ""
) -> LanguageModel:
    """Returns the `LanguageModel` of a model that is already in memory, which is run on a few tokens.

    A model that torch.compile returned is replaced by the model that it wraps, since compiled code calls no hooks.

    Raises:
        InvalidInput: The model is not a causal language model, or has adapters of a kind that is not supported.
    """
    model = unwrap_compiled(model)
    for config in active_adapter_configs(model):
        if (unsupported := describe_unsupported(config)) is not None:
            raise InvalidInput(f"the model has {unsupported}")
    require_causal(model)
    config = getattr(model, "config", None)
    text_config = (
        config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    )
    backbone, head = _split(model)
    unreached = find_unreached_modules(model, find_trackable_modules(model).values())
    max_tokens = _read_context(text_config)
    return LanguageModel(model, tokenizer, max_tokens, backbone, head, sha256, unreached=unreached)


def _read_context(config: Any) -> int | None:
    """Returns the context that a configuration states, or None if it states none."""
    stated = (getattr(config, name, None) for name in _CONTEXT_FIELDS)
    return next((value for value in stated if isinstance(value, int) and value > 0), None)


def _count_rows(module: nn.Module | None) -> int | None:
    """Returns how many token ids an embedding or an output head has weights for, or None if there is no such matrix."""
    weight = getattr(module, "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) and weight.dim() == 2 else None


@torch.no_grad()
def _split(model: nn.Module) -> tuple[nn.Module | None, nn.Linear | None]:
    """Returns (backbone, head) where head(backbone(ids).last_hidden_state) is what the model computes, else two None.

    Some models scale what goes into the head, or scale or cap what comes out of it, which shows on a few tokens. What
    comes out is compared to the last bit, since a cap that bends large logits hardly changes small ones.
    """
    inner = unwrap_model(model)
    backbone, head = getattr(inner, "base_model", inner), find_output_head(model)
    if backbone is model or not isinstance(head, nn.Linear):
        return None, None
    ids = torch.arange(1, 6, device=find_device(model))[None] % head.out_features
    head_tensors: list[Tensor] = []

    def note_tensors(_head: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        head_tensors.extend((*args, output))

    hook = head.register_forward_hook(note_tensors)
    try:
        with freeze(model):
            logits = model(input_ids=ids, use_cache=False).logits
            hook.remove()
            hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
    except (AttributeError, TypeError):
        return None, None
    finally:
        hook.remove()
    if len(head_tensors) != 2 or head_tensors[0].shape != hidden.shape:
        return None, None
    head_input, head_output = head_tensors
    unscaled = torch.allclose(hidden, head_input, rtol=1e-3, atol=1e-4)
    uncapped = torch.equal(logits, head_output.to(logits.dtype))
    return (backbone, head) if unscaled and uncapped else (None, None)


def context_limit(model: LanguageModel, max_tokens: int | None) -> int | None:
    """Returns the most tokens that a document may have: `max_tokens`, or all that the model takes.

    Raises:
        InvalidInput: `max_tokens` is more than the model takes.
    """
    if max_tokens is not None and model.max_tokens is not None and max_tokens > model.max_tokens:
        raise InvalidInput(
            f"max_tokens is {max_tokens}, but the model takes at most {model.max_tokens} tokens"
        )
    return max_tokens or model.max_tokens


def token_limits(model: LanguageModel, max_tokens: int | None = None) -> TokenLimits:
    """Returns which texts a model takes, of at most `max_tokens` tokens or of all that its context has.

    Raises:
        InvalidInput: `max_tokens` is more than the model takes.
    """
    inputs, outputs = find_input_embedding(model.model), find_output_head(model.model)
    return TokenLimits(
        context_limit(model, max_tokens), _count_rows(inputs), _count_rows(outputs), model.tokenizer
    )


def require_same_model(name: str, manifest: Manifest, model: LanguageModel) -> None:
    """Checks that `model` is the one that the index `name` was built from.

    Raises:
        IndexCorrupt: The model's files are others; the message names those that have changed.
    """
    if model.sha256 == manifest.model_sha256:
        return
    changed = "its files have changed"
    if manifest.model_files:
        if model.files is not None:
            changed = f"{_abridge(model.files.find_changed(manifest.model_files))} changed"
    elif model.files is not None and model.files.first_release_sha256 == manifest.model_sha256:
        return  # the index was built by a release that hashed fewer files
    raise IndexCorrupt(
        f"the model {manifest.spec.model} is not the one that the index {name} was built from: {changed}; restore it "
        "or build the index again"
    )


def _abridge(names: Sequence[str]) -> str:
    """Returns the first names and the verb that goes with them, for a message."""
    first = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{first} {'has' if len(names) == 1 else 'have'}"
