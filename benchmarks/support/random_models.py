"""Models with random weights in the shapes of real ones: nothing is downloaded."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.demo.training import fit_tokenizer


def gpt_neox_8m(vocabulary: int = 4096) -> PreTrainedModel:
    """Returns a GPT-NeoX of 8.4 M parameters, the size of a small research model."""
    return _gpt_neox(vocabulary, width=256, layers=8, heads=4)


def gpt_neox_two_layers() -> PreTrainedModel:
    """Returns a GPT-NeoX of 1.4 M parameters in two layers, to try code with."""
    return _gpt_neox(4096, width=128, layers=2, heads=4)


def gpt_neox_70m() -> PreTrainedModel:
    """Returns a GPT-NeoX of 70 M parameters, in the shape of Pythia 70M."""
    return _gpt_neox(50_304, width=512, layers=6, heads=8)


def gpt_neox_160m() -> PreTrainedModel:
    """Returns a GPT-NeoX of 162 M parameters, in the shape of Pythia 160M."""
    return _gpt_neox(50_304, width=768, layers=12, heads=12)


def _gpt_neox(vocabulary: int, width: int, layers: int, heads: int) -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=2048,
        )
    )


def llama_1b() -> PreTrainedModel:
    """Returns a Llama in the shape of Llama 3.2 1B, without rope scaling."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128_256,
            hidden_size=2048,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            intermediate_size=8192,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "two-layers": gpt_neox_two_layers,
    "small": gpt_neox_8m,
    "neox-70m": gpt_neox_70m,
    "neox-160m": gpt_neox_160m,
    "llama-1b": llama_1b,
}


def make_random_model(name: str, device: str = "cpu", dtype: str = "float32") -> PreTrainedModel:
    """Returns a model of `MODELS` in evaluation mode; its weights are the same each time."""
    torch.manual_seed(0)
    with torch.device(device):
        model = MODELS[name]()
    return model.to(getattr(torch, dtype)).eval()


def save_random_model(directory: Path, name: str, vocabulary: int, texts: Sequence[str]) -> Path:
    """Saves a model of `MODELS`, with a tokenizer that is fitted to `texts`, and returns the directory."""
    make_random_model(name).save_pretrained(directory)
    fit_tokenizer(texts, vocabulary).save_pretrained(directory)
    return directory


def save_tiny_model(directory: Path) -> Path:
    """Saves a GPT-NeoX of 80,000 parameters in two layers, with a tokenizer, and returns the directory."""
    texts = [document.text for document in make_corpus(people=50, seed=0).documents]
    tokenizer = fit_tokenizer(texts, 1000)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer.get_vocab()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    GPTNeoXForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
