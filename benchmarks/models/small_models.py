"""Small models that are trained from scratch on a corpus: a GPT-2 and a Llama of two layers.

Dropout is off, so that the gradients of an index are those of the training. Retraining for the linear datamodelling
score starts from the saved configuration (`BuiltInTrainer` with `scratch`).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.corpora.corpus import Corpus
from benchmarks.corpora.registry import VOCABULARY
from benchmarks.models.model_cache import cached_model
from bergson_core.demo.training import fit_tokenizer
from bergson_core.evaluation.training_loop import reproducible, train_causal_model
from bergson_core.schemas.training import TrainingProgress, TrainingSchedule

WIDTH: Final = 128
CONTEXT: Final = 256
SCHEDULE: Final = TrainingSchedule(batch_size=16, epochs=8, learning_rate=2e-3)
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def _gpt2(tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        initializer_range=0.05,
        **_special_tokens(tokenizer),
    )


def _llama(tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3 * WIDTH,
        initializer_range=0.05,
        tie_word_embeddings=True,
        **_special_tokens(tokenizer),
    )


SMALL_MODELS: Mapping[str, Callable[[PreTrainedTokenizerFast], PretrainedConfig]] = {
    "gpt2": _gpt2,
    "llama": _llama,
}
"""Name of an architecture → function that returns its configuration."""


def train_small_model(
    corpus: Corpus,
    architecture: str,
    cache: Path,
    schedule: TrainingSchedule = SCHEDULE,
    seed: int = 0,
    progress: TrainingProgress | None = None,
) -> Path:
    """Returns the directory of a model of `SMALL_MODELS` that was trained on a corpus, with its tokenizer.

    Args:
        corpus: Documents to train on.
        architecture: A key of `SMALL_MODELS`.
        cache: Directory that keeps models.
        schedule: Batch size, number of steps and learning rate.
        seed: Seed of the weights and of the order of the documents.
        progress: Called after each step.
    """
    tokenizer = fit_tokenizer([document.text for document in corpus.documents], VOCABULARY)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = SMALL_MODELS[architecture](tokenizer)

    def make(directory: Path) -> None:
        documents, _ = corpus.tokenize(tokenizer)
        with reproducible(seed, schedule.threads):
            model = AutoModelForCausalLM.from_config(config)
            train_causal_model(model, documents, config.eos_token_id, schedule, progress)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    shape = {name: value for name, value in config.to_dict().items() if name != "transformers_version"}
    inputs = [corpus.sha256(), shape, asdict(schedule), seed]
    return cached_model(cache, f"{corpus.name}-{architecture}", inputs, make)


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
