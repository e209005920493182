"""Models of real sizes from configs, with random weights: nothing is downloaded."""

from collections.abc import Callable

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel


def small(vocabulary: int = 4096) -> PreTrainedModel:
    """A GPT-NeoX of 8.4 M parameters, as a small research model would be."""
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            num_hidden_layers=8,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=2048,
        )
    )


def neox_160m() -> PreTrainedModel:
    """GPT-NeoX as Pythia 160 M has it."""
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=50_304,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            max_position_embeddings=2048,
        )
    )


def llama_1b() -> PreTrainedModel:
    """Llama as Llama 3.2 1B has it, without rope scaling."""
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
    "small": small,
    "neox-160m": neox_160m,
    "llama-1b": llama_1b,
}


def make(name: str, device: str = "cpu", dtype: str = "float32") -> PreTrainedModel:
    """A model of `MODELS` on a device, in evaluation mode, the same weights each time."""
    torch.manual_seed(0)
    with torch.device(device):
        made = MODELS[name]()
    return made.to(getattr(torch, dtype)).eval()
