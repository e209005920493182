"""TODO"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import IndexCorrupt, InvalidInput
from bergson_core.models.hooks import freeze, unwrap_model
from bergson_core.models.modules import TrackedModule, find_output_head
from bergson_core.storage.manifest import Manifest

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class LanguageModel:
    """A model with what is needed to run it on text.

    `backbone` and `head` compute the model's logits as head(backbone(ids).last_hidden_state), which was checked;
    both are None where the model is not of that form, or where the head itself is tracked. `max_tokens` is the
    model's context, None where it states none. `sha256` covers config, weights and tokenizer; empty for a model
    that did not come from files. `revision` is the commit of the hub's repository that it came from.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    max_tokens: int | None
    backbone: nn.Module | None
    head: nn.Linear | None
    sha256: str = ""
    revision: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def parameter_count(self) -> int:
        """Numbers in its weights."""
        return sum(weight.numel() for weight in self.model.parameters())

    def for_tracking(self, modules: Iterable[TrackedModule]) -> "LanguageModel":
        """The same model, run whole where a tracked layer is in the head."""
        if any(self.head in (layer.module, *layer.twins) for layer in modules):
            return replace(self, backbone=None, head=None)
        return self


def as_language_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, sha256: str = ""
) -> LanguageModel:
    """A model that is already in memory."""
    config = getattr(model, "config", None)
    text_config = (
        config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    )
    limit = getattr(text_config, "max_position_embeddings", None)
    backbone, head = _split(model)
    return LanguageModel(model, tokenizer, limit, backbone, head, sha256)


@torch.no_grad()
def _split(model: nn.Module) -> tuple[nn.Module | None, nn.Linear | None]:
    """(backbone, head) where head(backbone(ids).last_hidden_state) is what the model computes, else (None, None).

    Some models scale what goes into the head, or scale or cap what comes out of it: a few tokens show it. What
    comes out is compared to the last bit, since a cap that bends large logits hardly changes small ones.
    """
    inner = unwrap_model(model)
    backbone, head = getattr(inner, "base_model", inner), find_output_head(model)
    if backbone is model or not isinstance(head, nn.Linear):
        return None, None
    ids = torch.arange(1, 6, device=next(model.parameters()).device)[None] % head.out_features
    ends: list[Tensor] = []

    def note_ends(_head: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        ends.extend((*args, output))

    hook = head.register_forward_hook(note_ends)
    try:
        with freeze(model):
            logits = model(input_ids=ids, use_cache=False).logits
            hook.remove()
            hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
    except (AttributeError, TypeError):
        return None, None
    finally:
        hook.remove()
    if len(ends) != 2 or ends[0].shape != hidden.shape:
        return None, None
    unscaled = torch.allclose(hidden, ends[0], rtol=1e-3, atol=1e-4)
    uncapped = torch.equal(logits, ends[1].to(logits.dtype))
    return (backbone, head) if unscaled and uncapped else (None, None)


def context_limit(model: LanguageModel, max_tokens: int | None) -> int | None:
    """The longest document in tokens: what the user allows, or the model's context.

    Raises `InvalidInput` where more is allowed than the model takes.
    """
    if max_tokens is not None and model.max_tokens is not None and max_tokens > model.max_tokens:
        raise InvalidInput(
            f"max_tokens is {max_tokens}, but the model takes at most {model.max_tokens} tokens"
        )
    return max_tokens or model.max_tokens


def require_same_model(name: str, manifest: Manifest, model: LanguageModel) -> None:
    """Raises `IndexCorrupt` unless `model` is the one that the index `name` was built from."""
    if model.sha256 != manifest.model_sha256:
        raise IndexCorrupt(
            f"the model {manifest.spec.model} is not the one that the index {name} was built from: its files have "
            "changed; restore it or build the index again"
        )
