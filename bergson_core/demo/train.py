"""Trains the demo's model: GPT-NeoX on the CPU, in about a minute.

Documents are tokenised as an index tokenises them, with nothing added in front.

The recipe was found by experiment (400 people, 4,800 documents of 9 tokens). What mattered: the two halves of a
layer one after the other (not GPT-NeoX's parallel residual), eight heads rather than four or two, weights drawn
wider than 0.02, a long warm-up, and many small steps rather than few large ones.
"""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bergson_core.data.batching import tokenize
from bergson_core.demo.recipe import DemoRecipe
from bergson_core.demo.synthetic_facts import FactCorpus
from bergson_core.evaluation import training_loop
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.schemas.training import TrainingProgress

_EOS, _PAD = "<|endoftext|>", "<|padding|>"


def train(
    corpus: FactCorpus, seed: int, recipe: DemoRecipe, progress: TrainingProgress | None = None
) -> tuple[GPTNeoXForCausalLM, PreTrainedTokenizerFast, int, float]:
    """(model, tokenizer, steps taken, share of the queries that it recites)."""
    tokenizer = fit_tokenizer([document.text for document in corpus.documents], recipe.vocabulary)
    documents = tokenize(tokenizer, [document.text for document in corpus.documents], None)
    with training_loop.reproducible(seed, recipe.threads):
        model = _new_model(tokenizer, recipe)
        steps = training_loop.train(model, documents, tokenizer.get_vocab()[_EOS], recipe, progress)
        return model, tokenizer, steps, recited(model, tokenizer, corpus.queries)


@torch.no_grad()
def recited(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, queries: Sequence[EvaluationQuery]
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
        best = model(input_ids=training_loop.pad(batch, training_loop.FILLER)).logits.argmax(-1).tolist()
        for prompt, whole, guess in zip(prompts[start : start + 256], batch, best, strict=True):
            right += guess[len(prompt) - 1 : len(whole) - 1] == whole[len(prompt) :]
    return right / len(queries)


def fit_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be written, and a space belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bpe = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_EOS, _PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, bpe)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_EOS, pad_token=_PAD)


def _new_model(tokenizer: PreTrainedTokenizerFast, recipe: DemoRecipe) -> GPTNeoXForCausalLM:
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
