"""What a model says by itself: the completion of a query that came without one."""

import warnings

import torch

from bergson_core.data.batching import encode
from bergson_core.errors import InvalidInput, TooLong
from bergson_core.models.language_model import LanguageModel, context_limit


def generate_completion(model: LanguageModel, prompt: str, max_new_tokens: int) -> str:
    """The most likely token after each other, until the model ends or after `max_new_tokens`, as text.

    One prompt at a time, without padding, so that what is said does not depend on who else asks.
    Raises `InvalidInput` where there is nothing to go on from, or the model says nothing, and `TooLong` where prompt
    and `max_new_tokens` do not fit into the model.
    """
    tokenizer, generator = model.tokenizer, model.model
    assert tokenizer is not None  # load_model always gives one
    if not hasattr(generator, "generate"):
        raise InvalidInput(f"{type(generator).__name__} cannot generate: expected a completion in the query")
    encoded = encode(tokenizer, prompt, return_tensors="pt")["input_ids"]
    length, limit = encoded.shape[1], context_limit(model, None)
    if length == 0:
        raise InvalidInput("nothing to go on from: expected a prompt, a completion, or both")
    if limit is not None and length + max_new_tokens > limit:
        raise TooLong(
            f"the prompt has {length} tokens, and max_new_tokens asks for {max_new_tokens} more: the model "
            f"takes {limit}; shorten the prompt, lower max_new_tokens, or give the completion"
        )
    ids = encoded.to(next(generator.parameters()).device)
    ends = tokenizer.eos_token_id
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of sampling parameters that a model's configuration has and greedy ignores
        said = generator.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=0 if ends is None else ends,
        )[0]
    before, after = (
        str(tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for part in (said[:length], said)
    )
    completion = after[len(before) :]
    if not completion:
        raise InvalidInput(
            "the model says nothing after this prompt: give the completion that is to be explained"
        )
    return completion
