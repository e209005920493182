"""A text that is too long is cut into texts of their own, without losing or splitting a character."""

from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bergson_core.errors import InvalidInput
from bergson_core.tokens.cutting import iter_text_parts
from tests import tiny


def byte_level(**options):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=options.pop("trim_offsets", True))
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(tiny.texts(20), trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def with_special_tokens():
    tokenizer = tiny.tokenizer(tiny.texts(20))
    template = processors.TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def sentencepiece():
    """As in Llama: a token begins with the white space before it, and the first has some put before it."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", *(f"<0x{k:02X}>" for k in range(256))]
    bpe.train_from_iterator(tiny.texts(20), trainers.BpeTrainer(vocab_size=400, special_tokens=specials))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


def word_piece():
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "person": 3}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


TOKENIZERS = {
    "no offsets of white space": byte_level,
    "all offsets": lambda: byte_level(trim_offsets=False),
    "tests": lambda: tiny.tokenizer(tiny.texts(20)),
    "special tokens": with_special_tokens,
    "sentencepiece": sentencepiece,
    "words": word_piece,
}
TEXTS = {
    "sentences": " ".join(tiny.texts(12)),
    "white space": "  a \n\n\t b" + " " * 50 + "c" + "\n" * 30,
    "emoji": "🙂🙃 a 👩‍👩‍👧‍👦 é ü 漢字 " * 6,
    "one word": "a" * 200,
    "mixed": "Person 1 lives 漢字 in\r\ncity 2.  🙂 And works… " * 5,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("make_tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize(("max_tokens", "overlap"), [(16, 0), (16, 4), (16, 8), (40, 3)])
def test_the_parts_are_whole_and_short_enough(make_tokenizer, text, max_tokens, overlap):
    tokenizer = make_tokenizer()
    parts = list(iter_text_parts(tokenizer, text, max_tokens, overlap))
    assert (parts[0].start, parts[-1].end) == (0, len(text))
    for part in parts:
        assert part.start < part.end
        assert part.tokens == len(tokenizer(text[part.start : part.end])["input_ids"]) <= max_tokens
    for part, following in pairwise(parts):
        assert part.start < following.start <= part.end < following.end
        if not overlap:
            assert following.start == part.end


def test_an_overlap_is_as_long_as_asked_for():
    tokenizer, text = tiny.tokenizer(tiny.texts(20)), " ".join(tiny.texts(12))
    first, second, *_ = iter_text_parts(tokenizer, text, 20, 6)
    assert len(tokenizer(text[second.start : first.end])["input_ids"]) == 6


def test_a_character_of_more_tokens_than_a_part_cannot_be_cut():
    with pytest.raises(InvalidInput, match="🙂"):
        list(iter_text_parts(tiny.tokenizer(), "a🙂", 2))


def test_a_text_without_tokens_has_no_parts():
    assert list(iter_text_parts(tiny.tokenizer(), "", 8)) == []
