"""Tokenizers of different kinds, trained on a few sentences."""

import json

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Ada Lovelace was born in London in 1815.",
    "The band that Bo likes is called Sylvania City.",
    "Question: where? Answer: in the city of Paris.",
    "the sum is 4 and the year is 1984, said Ada",
    "Ада родилась в Лондоне. दिल्ली में 我住在北京 ฉันอยู่กรุงเทพ 나는 서울 Farm: 🐑🐄🐟",
] * 3
BYTES = pre_tokenizers.ByteLevel.alphabet()


def byte_level(
    size: int = 700, *, trim_offsets: bool = False, bos: bool = False, eos: bool = False
) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer, as GPT-2, Llama 3 and Qwen have; it may add BOS and EOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<eos>", "<s>"], initial_alphabet=BYTES, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    if trim_offsets:
        bpe.post_processor = processors.ByteLevel(trim_offsets=True)
    return _with_special_tokens(bpe, bos, eos)


def sentencepiece(*, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with "▁" before words and bytes for unknown characters, as Llama 2 and Mistral have."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<eos>", "<s>", "<unk>"], show_progress=False
    )
    trained.train_from_iterator([text for text in SENTENCES if text.isascii()], trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in model["merges"]]
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    bpe.pre_tokenizer = trained.pre_tokenizer
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens(["<eos>", "<s>", "<unk>"])
    return _with_special_tokens(bpe, bos, eos)


def characters() -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose tokens are single characters."""
    vocabulary = {"<eos>": 0, "<s>": 1, "<unk>": 2}
    for character in "".join(SENTENCES):
        vocabulary.setdefault(character, len(vocabulary))
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokens.decoder = decoders.Fuse()
    return _with_special_tokens(tokens, False, False)


def wordpiece() -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose words are without the space before them, as BERT has."""
    pieces = Tokenizer(models.WordPiece(unk_token="<unk>"))
    pieces.normalizer = normalizers.NFC()
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.decoder = decoders.WordPiece()
    special = ["<eos>", "<s>", "<unk>"]
    pieces.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    return _with_special_tokens(pieces, False, False)


def _with_special_tokens(tokenizer: Tokenizer, bos: bool, eos: bool) -> PreTrainedTokenizerFast:
    if bos or eos:
        special = [("<eos>", tokenizer.token_to_id("<eos>")), ("<s>", tokenizer.token_to_id("<s>"))]
        template = f"{'<s> ' if bos else ''}$A{' <eos>' if eos else ''}"
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<eos>", pad_token="<eos>"
    )
