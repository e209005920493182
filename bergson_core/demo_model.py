"""A small GPT-NeoX that knows the facts of `facts.py` by heart, trained on the CPU in about a minute.

Each document is one row, tokenised as an index tokenises it (nothing added in front), closed with the end-of-text
token and padded on the right; the loss is taken over every token but the first. What is saved is an ordinary
Hugging Face directory, so that nothing downstream knows where the model came from.

The recipe was found by experiment (400 people, 4,800 documents of 9 tokens). What mattered: the two halves of a
layer one after the other (not GPT-NeoX's parallel residual), eight heads rather than four or two, weights drawn
wider than 0.02, a long warm-up, and many small steps rather than few large ones.

Legend: n rows, s positions.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bergson_core.errors import InvalidInput
from bergson_core.facts import Corpus, FactQuery

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a note such as "loss 1.23")."""

_EOS, _PAD = "<|endoftext|>", "<|padding|>"
_FILLER = 0  # any token fills a row up: it lies to the right, where causal attention does not look
_IGNORED = -100  # the label that cross_entropy leaves out
_STAMP = "trained"  # no .json: what it says (seconds) must not change the hash of the model's content
_STAMP_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """How large the model is and how it is trained.

    It takes `epochs` passes over the documents, but at least `least_steps` steps. `target` is the share of facts that
    must be recited in the end. `threads` is torch's: these matrices are small, so a second thread gains little on an
    idle machine, and on a busy one the two wait for each other and took twice as long as one.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 8
    vocabulary: int = 2000
    batch_size: int = 64
    epochs: int = 16
    least_steps: int = 250
    learning_rate: float = 3e-3
    warmup: float = 0.3
    weight_decay: float = 0.1
    target: float = 0.8
    threads: int = 1


@dataclass(frozen=True)
class TrainingReport:
    """`accuracy` is the share of queries answered exactly by greedy decoding; `seconds` is wall time."""

    accuracy: float
    seconds: float
    steps: int
    parameters: int


def train_demo_model(
    corpus: Corpus,
    directory: Path | str,
    progress: Progress | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
) -> TrainingReport:
    """Trains a model on the corpus' documents and saves it with its tokenizer in `directory`.

    A directory that holds the model of equal arguments is left as it is and its report returned; one that holds
    another demo model is replaced. The directory appears at once and whole, or not at all. Raises `InvalidInput` for
    a corpus without documents or queries, for a directory that holds anything else, and where the model recites
    fewer facts than `recipe.target`.
    """
    directory, recipe = Path(directory), recipe or Recipe()
    if not corpus.documents or not corpus.queries:
        raise InvalidInput("the corpus has no documents or no queries; expected one of make_corpus")
    fingerprint = _fingerprint(corpus, seed, recipe)
    if (known := _trained_before(directory, fingerprint)) is not None:
        return known
    started = time.perf_counter()
    tokenizer = _fit_tokenizer([document.text for document in corpus.documents], recipe.vocabulary)
    encoded = tokenizer([document.text for document in corpus.documents])["input_ids"]
    rows = [[*ids, tokenizer.eos_token_id] for ids in encoded]
    steps = max(recipe.least_steps, recipe.epochs * -(-len(rows) // recipe.batch_size))
    with _reproducible(seed, recipe.threads):
        model = _new_model(tokenizer, recipe)
        _train(model, _batches(rows, recipe.batch_size), steps, recipe, progress)
        accuracy = recited(model, tokenizer, corpus.queries)
    if accuracy < recipe.target:
        raise InvalidInput(
            f"after {steps} steps the model recites {accuracy:.0%} of the facts, fewer than the {recipe.target:.0%} "
            "asked for; take fewer people or more epochs"
        )
    report = TrainingReport(accuracy, time.perf_counter() - started, steps, model.num_parameters())
    _publish(directory, model, tokenizer, {"fingerprint": fingerprint, "report": asdict(report)})
    return report


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


def _fit_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
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
    end, padding = (tokenizer.get_vocab()[token] for token in (_EOS, _PAD))
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
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=padding,
    )
    return GPTNeoXForCausalLM(config).float()


def _train(
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


def _fingerprint(corpus: Corpus, seed: int, recipe: Recipe) -> str:
    """sha256 of everything that the trained model depends on, versions of libraries aside."""
    everything = [_STAMP_VERSION, seed, asdict(recipe), asdict(corpus)]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _trained_before(directory: Path, fingerprint: str) -> TrainingReport | None:
    """The report of the model in `directory`, if it is the one; `InvalidInput` if what is there is not ours."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    try:
        stamp = json.loads((directory / _STAMP).read_text("utf-8"))
        known, report = stamp["fingerprint"], TrainingReport(**stamp["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{directory} holds no demo model, and is not overwritten; name another place"
        ) from error
    return report if known == fingerprint and (directory / "model.safetensors").is_file() else None


def _publish(
    directory: Path, model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, stamp: dict[str, object]
) -> None:
    """Writes beside the place, flushes to disk and renames; an older demo model there is removed."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    new, old = (directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.{end}") for end in ("tmp", "old"))
    new.mkdir()
    try:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n", "utf-8")
        for path in new.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
