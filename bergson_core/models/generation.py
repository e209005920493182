"""Generates the completion of a query that has none: what the model itself would write."""

import warnings

import torch

from bergson_core.data.batching import Tokens, encode
from bergson_core.errors import InvalidInput, TooLong
from bergson_core.models.language_model import LanguageModel, context_limit, token_limits


def generate_completion(model: LanguageModel, prompt: str, max_new_tokens: int) -> str:
    """Returns the completion of a prompt that the model generates greedily.

    Only one prompt is run at a time, without padding, so that a completion does not depend on other queries.

    Args:
        model: The model, with its tokenizer.
        prompt: The prompt.
        max_new_tokens: The most tokens that are generated; fewer where the model ends its text.

    Raises:
        InvalidInput: The prompt is empty or has a token that the model has no embedding for, the model generates no
            text, or it is a model that cannot generate.
        TooLong: The prompt and `max_new_tokens` more tokens are more than the model takes.
    """
    tokenizer, generator = model.tokenizer, model.model
    assert tokenizer is not None  # load_model always loads one
    if not hasattr(generator, "generate"):
        raise InvalidInput(f"{type(generator).__name__} cannot generate: expected a completion in the query")
    encoded = encode(tokenizer, prompt, return_tensors="pt")["input_ids"]
    length, limit = encoded.shape[1], context_limit(model, None)
    if length == 0:
        raise InvalidInput("there is nothing to continue: expected a prompt, a completion, or both")
    if limit is not None and length + max_new_tokens > limit:
        raise TooLong(
            f"the prompt has {length} tokens, and max_new_tokens asks for {max_new_tokens} more: the model "
            f"takes {limit}; shorten the prompt, lower max_new_tokens, or give the completion"
        )
    token_limits(model).require_known(Tokens.labelled_from(encoded[0].numpy(), length), "the prompt")
    ids = encoded.to(next(generator.parameters()).device)
    end_token = tokenizer.eos_token_id
    with torch.inference_mode(), warnings.catch_warnings():
        # A model's configuration may have sampling parameters, and transformers warns that greedy search ignores them.
        warnings.simplefilter("ignore")
        generated = generator.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=0 if end_token is None else end_token,
        )[0]
    # Both are decoded and compared, since decoding the new tokens alone may lose a space at their beginning.
    prompt_text, text = (
        str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for tokens in (generated[:length], generated)
    )
    completion = text[len(prompt_text) :]
    if not completion:
        raise InvalidInput(
            "the model generates no text after this prompt: give the completion that is to be explained"
        )
    return completion
