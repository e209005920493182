"""Trains the demo's model: GPT-NeoX on the CPU, in about a minute.

Each document is one row, tokenised as an index tokenises it (nothing added in front), closed with the end-of-text
token and padded on the right; the loss is taken over every token but the first.

The recipe was found by experiment (400 people, 4,800 documents of 9 tokens). What mattered: the two halves of a
layer one after the other (not GPT-NeoX's parallel residual), eight heads rather than four or two, weights drawn
wider than 0.02, a long warm-up, and many small steps rather than few large ones.

Legend: n rows, s positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bergson_core.demo_recipe import Progress, Recipe
from bergson_core.facts import Corpus, FactQuery

_EOS, _PAD = "<|endoftext|>", "<|padding|>"
_FILLER = 0  # any token fills a row up: it lies to the right, where causal attention does not look
_IGNORED = -100  # the label that cross_entropy leaves out


def train(
    corpus: Corpus, seed: int, recipe: Recipe, progress: Progress | None = None
) -> tuple[GPTNeoXForCausalLM, PreTrainedTokenizerFast, int, float]:
    """(model, tokenizer, steps taken, share of the queries that it recites)."""
    tokenizer = fit_tokenizer([document.text for document in corpus.documents], recipe.vocabulary)
    encoded = tokenizer([document.text for document in corpus.documents])["input_ids"]
    rows = [[*ids, tokenizer.eos_token_id] for ids in encoded]
    steps = max(recipe.least_steps, recipe.epochs * -(-len(rows) // recipe.batch_size))
    with _reproducible(seed, recipe.threads):
        model = _new_model(tokenizer, recipe)
        _take_steps(model, _batches(rows, recipe.batch_size), steps, recipe, progress)
        return model, tokenizer, steps, recited(model, tokenizer, corpus.queries)


@torch.no_grad()
def recited(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, queries: Sequence[FactQuery]
) -> float:
    """The share of queries whose completion greedy decoding of the prompt writes, token for token.

    One forward pass over prompt + completion decides it: greedy decoding writes the completion if and only if each
    of its tokens is the likeliest after those before it.
    """
    prompts = tokenizer([query.prompt for query in queries])["input_ids"]
    wholes = tokenizer([query.prompt + query.completion for query in queries])["input_ids"]
    model.eval()
    right = 0
    for start in range(0, len(queries), 256):
        batch = wholes[start : start + 256]
        best = model(input_ids=_pad(batch, _FILLER)).logits.argmax(-1).tolist()
        for prompt, whole, guess in zip(prompts[start : start + 256], batch, best, strict=True):
            right += guess[len(prompt) - 1 : len(whole) - 1] == whole[len(prompt) :]
    return right / len(queries)


def fit_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be written, and a space belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_EOS, _PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_EOS, pad_token=_PAD)


def _new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> GPTNeoXForCausalLM:
    ids = tokenizer.get_vocab()
    config = GPTNeoXConfig(
        vocab_size=len(ids),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=4 * recipe.hidden,
        max_position_embeddings=128,
        use_parallel_residual=False,
        initializer_range=0.05,
        bos_token_id=ids[_EOS],
        eos_token_id=ids[_EOS],
        pad_token_id=ids[_PAD],
    )
    return GPTNeoXForCausalLM(config).float()


def _take_steps(
    model: GPTNeoXForCausalLM,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    recipe: Recipe,
    progress: Progress | None,
) -> None:
    """AdamW over `steps` batches; the learning rate rises linearly, then falls linearly to zero."""
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, (0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    rising = max(1, round(recipe.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )
    model.train()
    for step, (ids, labels) in zip(range(1, steps + 1), batches, strict=False):
        logits = model(input_ids=ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, steps, f"loss {loss.item():.2f}")


def _batches(rows: list[list[int]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels [n, s] without end: every epoch in a new order, rows of similar length together."""
    while True:
        order = torch.randperm(len(rows)).tolist()
        batches: list[list[list[int]]] = []
        for start in range(0, len(order), 8 * size):
            pool = sorted((rows[k] for k in order[start : start + 8 * size]), key=len)
            batches += [pool[k : k + size] for k in range(0, len(pool), size)]
        for number in torch.randperm(len(batches)).tolist():
            yield _pad(batches[number], _FILLER), _pad(batches[number], _IGNORED)


def _pad(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of different length as one tensor [n, s], filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


@contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seeds torch and fixes its number of threads; both are afterwards as they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)
