"""A query without a completion is answered for the very tokens that the model generates; spans of a given one."""

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from bergson_core import AttributionIndex, VerifySpec
from bergson_core.errors import InvalidInput, TooLong
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import as_language_model
from bergson_core.tokens.tokenization import Tokens, encode_context, tokenize
from tests import reference, tiny
from tests.core import tokenizer_kinds
from tests.core.helpers import query


@pytest.fixture(scope="module")
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def test_a_generated_completion_is_answered_as_if_it_had_been_given(opened: AttributionIndex):
    without_completion = query().model_copy(update={"completion": None, "max_new_tokens": 4})
    (answer,) = opened.attribute([without_completion])
    assert answer.query.generated
    (given,) = opened.attribute([query(completion=answer.query.completion)])
    assert not given.query.generated
    assert answer.results == given.results
    assert answer.query.loss == given.query.loss


def most_likely_tokens(network: torch.nn.Module, context: list[int], count: int) -> list[int]:
    """Returns the tokens of a greedy search without a cache, one pass for each."""
    ids = list(context)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(context) :]


def test_each_token_is_the_most_likely_one(opened: AttributionIndex):
    model, prompt = opened.model, "Person 3 lives in"
    context = model.tokenizer(prompt).input_ids
    expected = most_likely_tokens(model.model, context, 5)
    generated = generate_completion(model, prompt, 5)
    assert (list(generated.context_ids), list(generated.ids)) == (context, expected)
    assert prompt + generated.text == model.tokenizer.decode(context + expected)


PROMPT = "Person 3 lives in"
PENALTIES = [
    {"repetition_penalty": 1.5},
    {"encoder_repetition_penalty": 3.0},
    {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 1},
    {"min_length": 60},
    {"min_new_tokens": 8},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": 7},
    {"exponential_decay_length_penalty": (0, 100.0)},
    {"guidance_scale": 3.0},
    {"num_beams": 4, "length_penalty": 5.0},
    {"num_beams": 4, "num_return_sequences": 4},
    {"do_sample": True, "temperature": 100.0},
    {"do_sample": True, "top_k": 0, "typical_p": 0.1},
    {"do_sample": True, "num_return_sequences": 3},
    {"max_length": 12},
    {"max_new_tokens": 1},
    {"max_time": 0.0},
    {"return_dict_in_generate": True, "output_scores": True},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"remove_invalid_values": True, "renormalize_logits": True},
    {"watermarking_config": {"bias": 20.0, "seeding_scheme": "selfhash"}},
]


@pytest.mark.parametrize("settings", PENALTIES, ids=str)
def test_nothing_in_the_generation_config_changes_the_most_likely_token(settings: dict):
    network, tokenizer = tiny.model(dtype=torch.float32), tiny.tokenizer(tiny.texts(20))
    expected = most_likely_tokens(network, tokenizer(PROMPT).input_ids, 8)
    network.generation_config = config = GenerationConfig(eos_token_id=None, **settings)
    assert list(generate_completion(as_language_model(network, tokenizer), PROMPT, 8).ids) == expected
    assert network.generation_config is config, "the model is the caller's"


@pytest.mark.parametrize(
    "setting", ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"]
)
def test_the_most_likely_token_is_taken_even_if_the_generation_config_forbids_it(setting: str):
    network, tokenizer = tiny.model(dtype=torch.float32), tiny.tokenizer(tiny.texts(20))
    expected = most_likely_tokens(network, tokenizer(PROMPT).input_ids, 3)
    forbidden = {
        "bad_words_ids": [[expected[0]]],
        "sequence_bias": [[[expected[0]], -1e9]],
    }.get(setting, expected)
    network.generation_config = GenerationConfig(eos_token_id=None, **{setting: forbidden})
    assert list(generate_completion(as_language_model(network, tokenizer), PROMPT, 3).ids) == expected


@pytest.mark.parametrize("as_list", [False, True])
def test_the_completion_stops_before_a_token_that_ends_texts(as_list: bool):
    network, tokenizer = tiny.model(dtype=torch.float32), tiny.tokenizer(tiny.texts(20))
    expected = most_likely_tokens(network, tokenizer(PROMPT).input_ids, 8)
    last = next(k for k in range(1, 8) if expected[k] not in expected[:k])
    stop = [999, expected[last]] if as_list else expected[last]
    network.generation_config = GenerationConfig(eos_token_id=stop, min_new_tokens=8)
    assert list(generate_completion(as_language_model(network, tokenizer), PROMPT, 8).ids) == expected[:last]


class Speaker(torch.nn.Module):
    """A model that says given tokens, whatever it is asked."""

    generation_config = None

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.ids, self.weight = ids, torch.nn.Parameter(torch.zeros(1))

    def generate(self, ids: torch.Tensor, generation_config: GenerationConfig, **_: object) -> torch.Tensor:
        said = self.ids[: generation_config.max_new_tokens]
        return torch.cat([ids, torch.tensor([said], dtype=torch.long)], dim=1)


KINDS = {
    "byte-level": tokenizer_kinds.byte_level(300),
    "byte-level with BOS and EOS": tokenizer_kinds.byte_level(300, bos=True, eos=True),
    "SentencePiece": tokenizer_kinds.sentencepiece(),
    "SentencePiece with BOS and EOS": tokenizer_kinds.sentencepiece(bos=True, eos=True),
}


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("said", ["🐑🐄🐟", " é ü", "a🐑 b", "北京"])
@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
def test_a_completion_never_ends_within_a_character(
    tokenizer: PreTrainedTokenizerBase, said: str, count: int
):
    prompt = "Farm:"
    ids = tokenizer(prompt + said, add_special_tokens=False).input_ids
    ids = ids[len(tokenizer(prompt, add_special_tokens=False).input_ids) :]
    model = as_language_model(Speaker(ids), tokenizer)
    first_whole = next(k for k in range(1, 5) if "\ufffd" not in tokenizer.decode(ids[:k]))
    if count < first_whole:
        with pytest.raises(InvalidInput, match="only a part of a character: raise max_new_tokens"):
            generate_completion(model, prompt, count)
        return
    generated = generate_completion(model, prompt, count)
    assert said.startswith(generated.text)
    assert list(generated.ids) == ids[: len(generated.ids)]
    assert len(generated.ids) > min(count, len(ids)) - 4, "no more than one character is left out"
    assert len(generated.ids) < len(ids) or generated.text == said


def test_bytes_of_no_character_are_explained_as_the_model_says_them():
    tokenizer = KINDS["byte-level"]
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ["a", *"ŁŁŁŁŁ"]]
    generated = generate_completion(as_language_model(Speaker(ids), tokenizer), "Farm:", 20)
    assert (list(generated.ids), generated.text) == (ids, "a" + 5 * "\ufffd")


@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece"])
def test_a_prompt_is_continued_without_the_eos_that_the_tokenizer_appends(kind: str):
    plain, adding = KINDS[kind], KINDS[f"{kind} with BOS and EOS"]
    ids = plain(PROMPT).input_ids
    assert encode_context(plain, PROMPT) == ids
    assert encode_context(adding, PROMPT) == [adding.bos_token_id, *ids]
    assert encode_context(adding, "") == [adding.bos_token_id]
    written = f"{PROMPT}<eos>"
    assert encode_context(adding, written) == [adding.bos_token_id, *ids, adding.eos_token_id]


@pytest.mark.parametrize("span", [None, (1, 7)])
def test_a_given_completion_has_the_same_labels_with_and_without_an_eos_after_it(span):
    plain, adding = KINDS["byte-level"], KINDS["byte-level with BOS and EOS"]
    (without,) = tokenize(plain, ["Ada was born in"], [" London."], [span], label_end=False)
    (with_eos,) = tokenize(adding, ["Ada was born in"], [" London."], [span], label_end=False)
    assert with_eos.ids[with_eos.labels].tolist() == without.ids[without.labels].tolist()
    (document,) = tokenize(adding, ["Ada was born in"], [" London."])
    assert document.labels[-1], "a document teaches where a text ends"


def test_a_special_token_within_a_completion_is_shown(opened: AttributionIndex):
    tokenizer = KINDS["byte-level"]
    ids = tokenizer(" in<s> London", add_special_tokens=False).input_ids
    generated = generate_completion(as_language_model(Speaker(ids), tokenizer), "Ada was born", 20)
    assert (list(generated.ids), generated.text) == (ids, " in<s> London")


def test_the_tokens_that_were_generated_are_explained_and_not_those_of_their_text(
    opened: AttributionIndex, monkeypatch: pytest.MonkeyPatch
):
    tokenizer, completion = opened.model.tokenizer, " city 1."
    spelled = [tokenizer.convert_tokens_to_ids(token) for token in ("Ġ", *"city", "Ġ", "1", ".")]
    monkeypatch.setattr(
        type(opened.model.model),
        "generate",
        lambda self, ids, **options: Speaker(spelled).generate(ids, **options),
    )
    asked = query(completion=None, verify=VerifySpec(top=1, controls=1), max_new_tokens=20)
    (answer,) = opened.attribute([asked])
    assert (answer.query.completion, answer.query.token_ids) == (completion, spelled)
    context = tokenizer(asked.prompt).input_ids
    tokens = Tokens.labelled_from(torch.tensor(context + spelled).numpy(), len(context))
    with torch.no_grad():
        loss = float(reference.loss_of(opened.model.model, tokens))
    assert answer.query.loss == pytest.approx(loss, rel=1e-5)
    assert answer.query.n_tokens == len(spelled)
    (given,) = opened.attribute([query(completion=completion)])
    assert given.query.n_tokens < len(spelled)
    (again,) = opened.answerer.query_tokenizer.tokenize_answered(asked, answer.query)
    assert again.ids.tolist() == context + spelled
    assert answer.verification.log_probability == pytest.approx(-loss, rel=1e-5)


def test_a_generated_completion_does_not_depend_on_other_queries(opened: AttributionIndex):
    queries = [query(f"Person {k} lives in the").model_copy(update={"completion": None}) for k in (1, 22)]
    together = opened.attribute([*queries, query()])
    alone = [opened.attribute([single])[0] for single in (*queries, query())]
    for together_answer, alone_answer in zip(together, alone, strict=True):
        assert together_answer.query.completion == alone_answer.query.completion
        assert together_answer.query.token_ids == alone_answer.query.token_ids


def test_a_prompt_that_leaves_no_room_is_an_error_and_nothing_is_cut(opened: AttributionIndex):
    with pytest.raises(TooLong, match="max_new_tokens"):
        generate_completion(opened.model, "Person 3 " * 10, opened.model.max_tokens)


def test_without_prompt_and_completion_there_is_nothing_to_continue(opened: AttributionIndex):
    (answer,) = opened.attribute([query("").model_copy(update={"completion": None})])
    assert isinstance(answer, InvalidInput)
    assert "nothing to continue" in str(answer)


def test_a_model_that_cannot_generate_says_what_it_needs(opened: AttributionIndex):
    plain = as_language_model(torch.nn.Linear(2, 2), opened.model.tokenizer)
    with pytest.raises(InvalidInput, match="expected a completion"):
        generate_completion(plain, "Person 3", 4)


def test_a_span_is_attributed_and_the_rest_is_context(opened: AttributionIndex):
    tokenizer, completion = opened.model.tokenizer, " city 1. Person 4 lives in city 2."
    start, end = completion.index(" Person"), completion.index(" lives")
    (whole,) = tokenize(tokenizer, ["Person 3 lives in"], [completion])
    (part,) = tokenize(tokenizer, ["Person 3 lives in"], [completion], [(start, end)])
    assert (part.ids == whole.ids).all()
    assert tokenizer.decode(part.ids[part.labels]) == completion[start:end]
    first, second = (
        opened.attribute([query(completion=completion, span=span)])[0]
        for span in ((0, start), (start, len(completion)))
    )
    (whole_answer,) = opened.attribute([query(completion=completion)])
    assert first.query.loss + second.query.loss == pytest.approx(whole_answer.query.loss, rel=1e-5)
    assert first.query.n_tokens + second.query.n_tokens == whole_answer.query.n_tokens


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (-1, 2), (0, 99)])
def test_a_span_outside_of_the_completion_is_refused(span: tuple[int, int]):
    with pytest.raises(ValueError, match="the characters of the completion"):
        query(span=span)


def test_a_span_without_a_completion_is_refused():
    with pytest.raises(ValueError, match="expected a text there"):
        query(completion=None, span=(0, 1))  # type: ignore[arg-type]
