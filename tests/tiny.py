"""Tiny models, tokenizers and datasets that the tests make themselves, so that nothing is downloaded."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 320


def gpt_neox(vocabulary: int = VOCABULARY) -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=40,
            max_position_embeddings=64,
        )
    )


def llama(vocabulary: int = VOCABULARY) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=40,
            max_position_embeddings=64,
            attention_bias=True,
        )
    )


def gpt2(vocabulary: int = VOCABULARY) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=24, n_layer=2, n_head=2, n_positions=64))


ARCHITECTURES = {"gpt_neox": gpt_neox, "llama": llama, "gpt2": gpt2}


def model(
    architecture: str = "gpt_neox", seed: int = 0, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """Returns a model with random weights and biases, in evaluation mode."""
    torch.manual_seed(seed)
    network = ARCHITECTURES[architecture]().to(dtype).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):  # They are zero by default, which would hide errors.
                parameter.normal_(std=0.1)
    return network


def tokenizer(texts: Sequence[str] = ("a small text",)) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer trained on `texts`, which can encode any text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<eos>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>")


def texts(count: int) -> list[str]:
    """Returns short sentences of different lengths, some of which occur several times."""
    return [
        f"Person {k % 7} lives in city {k % 5}" + (f" and works for company {k % 3}." if k % 2 else ".")
        for k in range(count)
    ]


def save_model(directory: Path, seed: int = 0) -> Path:
    """Saves a GPT-NeoX model in float32 and its tokenizer with save_pretrained, and returns the directory."""
    model(seed=seed, dtype=torch.float32).save_pretrained(directory)
    tokenizer(texts(20)).save_pretrained(directory)
    return directory


def save_documents(path: Path, count: int = 40) -> Path:
    """Writes a JSONL file with the columns id, text, source and number, and returns its path."""
    rows = [
        {"id": f"doc-{k}", "text": text, "source": "wiki" if k % 2 else "web", "number": k}
        for k, text in enumerate(texts(count))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
