"""Generates the completion of a query that has none: what the model itself would write."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput, TooLong
from bergson_core.models.hooks import unwrap_model
from bergson_core.models.language_model import LanguageModel, context_limit, token_limits
from bergson_core.models.offloading import find_device
from bergson_core.tokens.tokenization import Tokens, encode_context

_REPLACEMENT_CHARACTER: Final = "\ufffd"
"""What a decoder writes for bytes that are not a whole character."""
_MAX_PARTIAL_TOKENS: Final = 3
"""Most tokens that are only a part of a character: its bytes but the last, of which UTF-8 has at most four."""


@dataclass(frozen=True)
class GeneratedCompletion:
    """A completion as the model generated it.

    Attributes:
        context_ids: Ids of the tokens that the model continued: those of the prompt.
        ids: Ids of the tokens that it generated, without a token that ends the text.
        text: The characters of `ids`. Its tokens may be others, because a text can be written in more than one way.
    """

    context_ids: Sequence[int]
    ids: Sequence[int]
    text: str


def generate_completion(model: LanguageModel, prompt: str, max_new_tokens: int) -> GeneratedCompletion:
    """Returns the completion of a prompt that the model generates greedily.

    Each token is the most likely one after the prompt and the tokens so far: no penalty, bias or sampling that the
    model's generation_config asks for takes part. The completion stops before the first token that ends a text, which
    is any of those of the generation_config and of the tokenizer. Tokens at the end that are only a part of a character
    are left out. Bytes that are not a part of any character, such as an untrained model generates, stay; the text has
    U+FFFD for them.

    Only one prompt is run at a time, without padding, so that a completion does not depend on other queries.

    Args:
        model: The model, with its tokenizer.
        prompt: The prompt. Special tokens that the tokenizer puts after a text, such as EOS, are left out.
        max_new_tokens: The most tokens that are generated; fewer where the model ends its text.

    Raises:
        InvalidInput: The prompt is empty or has a token that the model has no embedding for, the model generates no
            text, or it is a model that cannot generate.
        TooLong: The prompt and `max_new_tokens` more tokens are more than the model takes.
    """
    tokenizer, generator = model.tokenizer, unwrap_model(model.model)
    assert tokenizer is not None  # load_model always loads one
    if not hasattr(generator, "generate"):
        raise InvalidInput(f"{type(generator).__name__} cannot generate: expected a completion in the query")
    context_ids = encode_context(tokenizer, prompt)
    length, limit = len(context_ids), context_limit(model, None)
    if length == 0:
        raise InvalidInput("there is nothing to continue: expected a prompt, a completion, or both")
    if limit is not None and length + max_new_tokens > limit:
        raise TooLong(
            f"the prompt has {length} tokens, and max_new_tokens asks for {max_new_tokens} more: the model "
            f"takes {limit}; shorten the prompt, lower max_new_tokens, or give the completion"
        )
    token_limits(model).require_known(Tokens.labelled_from(np.asarray(context_ids), length), "the prompt")
    ids = _generate_greedily(generator, context_ids, max_new_tokens, _end_tokens(generator, tokenizer))
    whole_ids, text = _cut_at_whole_character(tokenizer, context_ids, ids)
    if not text:
        if ids:
            raise InvalidInput(
                f"the {len(ids)} tokens that the model generates after this prompt are only a part of a character: "
                "raise max_new_tokens, or give the completion that is to be explained"
            )
        raise InvalidInput(
            "the model generates no text after this prompt: give the completion that is to be explained"
        )
    return GeneratedCompletion(context_ids, whole_ids, text)


def _generate_greedily(
    generator: nn.Module, context_ids: Sequence[int], max_new_tokens: int, end_tokens: Sequence[int]
) -> list[int]:
    """Returns the ids of the most likely tokens after `context_ids`, without the token that ends the text."""
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(end_tokens) or None,
        pad_token_id=next(iter(end_tokens), 0),
    )
    # transformers fills in what `config` leaves open from the model's own generation_config, so the model is given
    # another one: on a copy that shares the weights, because the model is the caller's.
    generator = copy.copy(generator)
    vars(generator)["generation_config"] = config
    ids = torch.tensor([list(context_ids)], device=find_device(generator))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sequence = generator.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)  # type: ignore[operator]
    generated = sequence[0, len(context_ids) :].tolist()
    end = next((k for k, token_id in enumerate(generated) if token_id in end_tokens), len(generated))
    return generated[:end]


def _end_tokens(generator: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids of the tokens that end a text, each once: those of the generation_config come first."""
    stated: Any = getattr(getattr(generator, "generation_config", None), "eos_token_id", None)
    stated = stated if isinstance(stated, list | tuple) else [stated]
    appended: Any = tokenizer.eos_token_id
    return list(dict.fromkeys(token_id for token_id in (*stated, appended) if token_id is not None))


def _cut_at_whole_character(
    tokenizer: PreTrainedTokenizerBase, context_ids: Sequence[int], ids: Sequence[int]
) -> tuple[Sequence[int], str]:
    """Returns (the tokens without those of a character that has only begun, their text)."""

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    context = decode(context_ids)

    def decode_after_context(tokens: Sequence[int]) -> str:
        # Context and tokens are decoded together, since decoding the tokens alone may lose a space at their beginning.
        text = decode((*context_ids, *tokens))
        return text[len(context) :] if text.startswith(context) else decode(tokens)

    for length in range(len(ids), max(-1, len(ids) - _MAX_PARTIAL_TOKENS - 1), -1):
        text = decode_after_context(ids[:length]) if length else ""
        if not text.endswith(_REPLACEMENT_CHARACTER):
            return ids[:length], text
    return ids, decode_after_context(ids)
