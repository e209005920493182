"""Trains the demo's model: a GPT-NeoX, on the CPU, in about a minute.

Documents are tokenised as an index tokenises them: no token is added in front.

The recipe was found by experiment with 400 people, that is 4,800 documents of 9 tokens on average. These choices
mattered: attention and feed-forward of a transformer layer run one after the other (instead of GPT-NeoX's parallel
residual), eight heads rather than four or two, initial weights with a standard deviation above 0.02, a long warm-up,
and many small steps rather than few large ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bergson_core.demo.recipe import DemoRecipe
from bergson_core.demo.synthetic_facts import FactCorpus
from bergson_core.evaluation import training_loop
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.schemas.training import TrainingProgress
from bergson_core.tokens.tokenization import tokenize

_EOS, _PAD = "<|endoftext|>", "<|padding|>"
_QUERY_BATCH_SIZE: Final = 256


@dataclass(frozen=True)
class TrainedModel:
    """A model that was just trained.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: The tokenizer that was fitted to the documents.
        steps: Optimizer steps that were taken.
        accuracy: Share of the queries that the model recites, from 0 to 1.
    """

    model: GPTNeoXForCausalLM
    tokenizer: PreTrainedTokenizerFast
    steps: int
    accuracy: float


def train_on_corpus(
    corpus: FactCorpus, seed: int, recipe: DemoRecipe, progress: TrainingProgress | None = None
) -> TrainedModel:
    """Fits a tokenizer to the documents of a corpus, trains a new model on them and counts what the model recites.

    Args:
        corpus: Documents to train on, and queries to answer afterwards.
        seed: Seed of the weights and of the order of the documents.
        recipe: Size of the model and training schedule.
        progress: Called after each optimizer step.
    """
    tokenizer = fit_tokenizer([document.text for document in corpus.documents], recipe.vocabulary)
    documents = tokenize(tokenizer, [document.text for document in corpus.documents], None)
    with training_loop.reproducible(seed, recipe.threads):
        model = new_model(tokenizer, recipe)
        end_token = tokenizer.get_vocab()[_EOS]
        steps = training_loop.train_causal_model(model, documents, end_token, recipe, progress)
        return TrainedModel(model, tokenizer, steps, recited_share(model, tokenizer, corpus.queries))


@torch.no_grad()
def recited_share(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, queries: Sequence[EvaluationQuery]
) -> float:
    """Returns the share of the queries whose completion greedy decoding of the prompt writes, token for token.

    One forward pass over prompt and completion decides this: greedy decoding writes the completion if and only if each
    of its tokens is the most likely one after the tokens before it.
    """
    prompts = tokenizer([query.prompt for query in queries])["input_ids"]
    texts = tokenizer([query.prompt + query.completion for query in queries])["input_ids"]
    model.eval()
    recited = 0
    for start in range(0, len(queries), _QUERY_BATCH_SIZE):
        batch = texts[start : start + _QUERY_BATCH_SIZE]
        input_ids = training_loop.pad_right(batch, training_loop.FILLER_TOKEN)
        predictions = model(input_ids=input_ids).logits.argmax(-1).tolist()
        for prompt, text, predicted in zip(
            prompts[start : start + _QUERY_BATCH_SIZE], batch, predictions, strict=True
        ):
            recited += predicted[len(prompt) - 1 : len(text) - 1] == text[len(prompt) :]
    return recited / len(queries)


def fit_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Fits a byte-level BPE tokenizer, which can write every text and joins a space to the word after it.

    Args:
        texts: Texts to fit the tokenizer to.
        vocabulary: Number of tokens.
    """
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


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: DemoRecipe) -> GPTNeoXForCausalLM:
    """Returns a model with random weights, which are drawn from torch's global generator.

    Args:
        tokenizer: The tokenizer of the model, from `fit_tokenizer`.
        recipe: Size of the model.
    """
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
