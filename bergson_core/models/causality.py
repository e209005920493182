"""Refuses models that are no causal language models, by their configuration and by running them on a few tokens.

transformers loads a BERT, the decoder of an encoder-decoder, or the backbone of a classifier as a causal language model
without an error. Such a model sees the tokens that it is to predict, or predicts them with a head that was trained for
something else, so that its losses and gradients mean nothing.

Legend: s positions, h features of an embedding, v vocabulary.
"""

import re
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from bergson_core.errors import InvalidInput
from bergson_core.models.hooks import freeze, unwrap_model
from bergson_core.models.modules import find_input_embedding
from bergson_core.models.probe import make_probe_batch

_OTHER_TASK: Final = re.compile(r"\w+For(?!CausalLM|ConditionalGeneration)[A-Z]\w+")
"""Names of classes for other tasks, such as BertForMaskedLM and GPT2ForSequenceClassification."""
_LARGEST_RATIO: Final = 1e-6
"""Gradient at later tokens, as a share of the gradient at earlier ones, that may be rounding. In causal attention the
gradient at later tokens is exactly 0."""


def require_causal_config(config: PreTrainedConfig) -> None:
    """Checks what a configuration says about the kind of the model.

    Raises:
        InvalidInput: The model is an encoder-decoder, was trained for another task, or is of a kind that transformers
            has no causal language model of.
    """
    _require_no_encoder(config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InvalidInput(
            f"transformers has no causal language model of the kind {config.model_type or type(config).__name__!r}"
        )
    for name in config.architectures or ():
        _require_no_other_task(name, config)


def require_causal(model: nn.Module) -> None:
    """Checks that a model predicts each token from earlier ones: by its kind, and by running it.

    The gradient of the logits at one position with regard to the embeddings of later tokens has to be 0. A model that
    does not take token ids, or that does not name its embedding of them, is not run.

    Raises:
        InvalidInput: The model is not a causal language model.
    """
    inner = unwrap_model(model)
    if isinstance(config := getattr(inner, "config", None), PreTrainedConfig):
        _require_no_encoder(config)
        _require_no_other_task(type(inner).__name__, config)
    input_ids = make_probe_batch(model)[:1]
    position = input_ids.shape[1] // 3
    gradient = _gradient_at_tokens(model, input_ids, position)
    if gradient is None:
        return
    norms = gradient.double().norm(dim=-1)
    earlier, later = norms[: position + 1].max(), norms[position + 1 :].max()
    if later > _LARGEST_RATIO * earlier:  # never true of what is not finite
        is_decoder = getattr(config, "is_decoder", None)
        hint = " (its configuration has is_decoder False)" if is_decoder is False else ""
        raise InvalidInput(
            f"{type(inner).__name__} is not a causal language model: its prediction of a token depends on later "
            f"tokens{hint}; expected a model that sees earlier tokens only"
        )


def _require_no_encoder(config: PreTrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidInput(
            f"the model is an encoder-decoder ({config.model_type}), whose completions do not continue their prompts; "
            "expected a causal language model, which is a decoder alone"
        )


def _require_no_other_task(class_name: str, config: PreTrainedConfig) -> None:
    """Raises `InvalidInput` where the name of a model's class says that it was trained for another task."""
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    causal_names = {cls.__name__ for cls in (causal if isinstance(causal, tuple) else (causal,)) if cls}
    is_other = _OTHER_TASK.fullmatch(class_name) and class_name not in causal_names
    if is_other and not getattr(config, "is_decoder", False):
        raise InvalidInput(
            f"the model is of the class {class_name}, which is for another task; expected a causal language model"
            + (f", such as {min(causal_names)}" if causal_names else "")
        )


def _gradient_at_tokens(model: nn.Module, input_ids: Tensor, position: int) -> Tensor | None:
    """Returns the gradient [s, h] of the logits at a position with regard to the embeddings of the tokens [1, s].

    Returns None for a model of another library that takes or returns something else, and where there is no gradient.

    Raises:
        InvalidInput: A model of transformers needs more than tokens, or its logits are not [1, s, v].
    """
    if (embedding := find_input_embedding(model)) is None:
        return None
    embedded: list[Tensor] = []

    def note_output(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # a leaf may not be changed in place, as some models do

    hook = embedding.register_forward_hook(note_output)
    try:
        with torch.enable_grad(), freeze(model):
            logits = model(input_ids=input_ids, use_cache=False).logits
    except (AttributeError, TypeError, ValueError) as error:
        if not isinstance(unwrap_model(model), PreTrainedModel):
            return None
        raise InvalidInput(
            f"{type(unwrap_model(model)).__name__} does not give logits for tokens alone ({error}); expected a causal "
            "language model with its head"
        ) from error
    finally:
        hook.remove()
    if logits.shape[:-1] != input_ids.shape:
        raise InvalidInput(
            f"{type(unwrap_model(model)).__name__} returns logits of shape {tuple(logits.shape)} for tokens of shape "
            f"{tuple(input_ids.shape)}; expected logits for each token"
        )
    if not embedded or not logits.requires_grad:
        return None
    objective = logits[0, position].float().square().sum()
    gradients = torch.autograd.grad(objective, embedded, allow_unused=True)
    # XLNet embeds [s, 1] tokens.
    return next((gradient.flatten(0, -2) for gradient in gradients if gradient is not None), None)
