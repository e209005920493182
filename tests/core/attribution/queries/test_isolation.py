"""A query that cannot be answered fails alone: the others of its batch get the answers that they get anyway."""

import shutil

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from bergson_core import AttributionIndex, build_index
from bergson_core.errors import BergsonError, InternalError, InvalidInput, TooLong, Unavailable
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models import batch_budget
from bergson_core.models.batch_budget import MAX_UNSTATED_TOKENS, find_token_limit
from bergson_core.models.language_model import as_language_model, token_limits
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.build import GradientSpec
from bergson_core.schemas.results import Answer
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.batching import Batch
from tests import architectures, tiny
from tests.core.helpers import make_spec, query

POISON = "~"


class PanicException(BaseException):
    """Named as what tokenizers raise where their Rust code panics."""


@pytest.fixture(scope="module")
def tool_model(tmp_path_factory):
    """A directory with a model and its tokenizer, which has a token that the model has no embedding for."""
    directory = tmp_path_factory.mktemp("tool") / "model"
    tokenizer = tiny.tokenizer(tiny.texts(20))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    torch.manual_seed(0)
    tiny.gpt_neox(len(tokenizer) - 1).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tool_index(sources, tool_model, tmp_path_factory) -> AttributionIndex:
    path = tmp_path_factory.mktemp("tool-index") / "facts"
    build_index(make_spec(sources, model=str(tool_model)), path)
    return AttributionIndex.open(path)


@pytest.fixture
def bloom(tmp_path):
    """A directory with a model that states no context."""
    architectures.model("bloom", dtype=torch.float32).save_pretrained(tmp_path / "bloom")
    tiny.tokenizer(tiny.texts(20)).save_pretrained(tmp_path / "bloom")
    return tmp_path / "bloom"


@pytest.mark.parametrize(
    "bad",
    [
        query("<tool> Person 3 lives in"),
        query("Person 3", " lives <tool> in"),
        query("Person 3", "<tool>"),
        query("Person <tool>", None),
        query("<tool>", " city 1.", verify={}),
        query("<tool>", " city 1.", include=("tokens",)),
    ],
    ids=["prompt", "completion", "completion alone", "generated", "verified", "tokens"],
)
def test_a_token_without_an_embedding_fails_its_own_query_alone(tool_index, bad):
    good = query()
    first, error, last = tool_index.attribute([good, bad, good])
    assert isinstance(error, InvalidInput)
    assert "'<tool>' (id 295)" in str(error)
    (alone,) = tool_index.attribute([good])
    assert [row.id for row in first.results] == [row.id for row in last.results]
    assert [row.id for row in first.results] == [row.id for row in alone.results]


def test_a_token_that_the_model_embeds_and_does_not_predict_may_only_be_context():
    model = tiny.gpt_neox()
    model.set_output_embeddings(torch.nn.Linear(24, tiny.VOCABULARY - 8, bias=False))
    limits = token_limits(as_language_model(model))
    assert (limits.input_ids, limits.output_ids) == (tiny.VOCABULARY, tiny.VOCABULARY - 8)


def fail_on_poison(monkeypatch, tokenizer, make_error):
    """Makes passes raise an error where one of the batch's texts has the poison in it."""
    collect, (poison,) = RowCollector.collect, tokenizer(POISON)["input_ids"]

    def collect_or_fail(self: RowCollector, batch: Batch):
        if (batch.input_ids == poison).any():
            raise make_error()
        return collect(self, batch)

    monkeypatch.setattr(RowCollector, "collect", collect_or_fail)


@pytest.mark.parametrize(
    ("make_error", "expected"),
    [
        (lambda: RuntimeError("a secret"), InternalError),
        (lambda: IndexError("a secret"), InternalError),
        (lambda: PanicException("a secret"), InternalError),
        (lambda: torch.OutOfMemoryError("CUDA out of memory"), TooLong),
        (lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: a secret"), TooLong),
        (lambda: MemoryError(), TooLong),
        (lambda: InvalidInput("this query is wrong"), InvalidInput),
    ],
)
def test_any_error_of_a_pass_fails_the_query_at_fault_alone(index, monkeypatch, make_error, expected):
    opened = AttributionIndex.open(index)
    fail_on_poison(monkeypatch, opened.model.tokenizer, make_error)
    outcomes = opened.attribute([query(), query(POISON), query("Person 5 works for"), query(POISON)])
    assert [type(outcome) for outcome in outcomes] == [Answer, expected, Answer, expected]
    assert "secret" not in str(outcomes[1])
    with pytest.raises(expected):
        opened.query(POISON, " city 1.")


def test_the_cause_of_an_unexpected_error_is_kept_for_the_library_and_logged(index, monkeypatch, caplog):
    opened, cause = AttributionIndex.open(index), RuntimeError("the reason")
    fail_on_poison(monkeypatch, opened.model.tokenizer, lambda: cause)
    (error,) = opened.attribute([query(POISON)])
    assert error.__cause__ is cause
    assert "the reason" in caplog.text


def test_an_error_of_the_cluster_is_that_of_all_queries_and_is_not_repeated(index, monkeypatch):
    opened, calls = AttributionIndex.open(index), []

    def fail():
        calls.append(1)
        return Unavailable("no machine answers")

    fail_on_poison(monkeypatch, opened.model.tokenizer, fail)
    with pytest.raises(Unavailable):
        opened.attribute([query(), query(POISON)])
    assert len(calls) == 1


def test_an_unexpected_error_of_a_verification_or_of_a_completion_is_that_of_its_query(index, monkeypatch):
    opened = AttributionIndex.open(index)

    def fail(*_: object, **__: object):
        raise RuntimeError("unexpected")

    monkeypatch.setattr(opened.model.model, "generate", fail, raising=False)
    monkeypatch.setattr("bergson_core.attribution.verification.unlearn", fail)
    generated, verified, plain = opened.attribute(
        [query(completion=None), query(verify={"top": 1, "controls": 0}), query()]
    )
    assert isinstance(generated, InternalError)
    assert isinstance(verified, InternalError)
    assert isinstance(plain, Answer)


def test_a_model_without_a_context_refuses_a_query_that_a_pass_has_no_memory_for(
    sources, bloom, tmp_path, monkeypatch
):
    path = tmp_path / "facts"
    build_index(make_spec(sources, model=str(bloom)), path)
    monkeypatch.setattr(batch_budget, "free_memory_bytes", lambda device: 2**28 + 2**23)
    opened = AttributionIndex.open(path)
    assert opened.model.max_tokens is None
    limit = opened.query_limits.max_tokens
    assert limit is not None
    assert 2 < limit < 1024
    long = query("Person 3 lives in city 1. " * limit)
    good, error, generated = opened.attribute([query(), long, long.model_copy(update={"completion": None})])
    assert isinstance(good, Answer)
    assert isinstance(error, TooLong)
    assert isinstance(generated, TooLong)


@pytest.mark.parametrize("limit", [8, 50])
def test_a_limit_for_queries_is_kept(index, limit):
    opened = AttributionIndex.open(index, max_query_tokens=limit)
    tokens = len(opened.model.tokenizer(query().prompt + query().completion)["input_ids"])
    (outcome,) = opened.attribute([query()])
    assert isinstance(outcome, TooLong if tokens > limit else Answer)


def test_a_limit_for_queries_above_the_context_is_the_context(index):
    assert AttributionIndex.open(index, max_query_tokens=10**6).query_limits.max_tokens == 64


def test_megabytes_of_text_are_refused_before_they_are_tokenised(index, monkeypatch):
    opened = AttributionIndex.open(index)
    tokenizer, longest = type(opened.model.tokenizer), [0]
    encode = tokenizer._encode_plus

    def measure(self, text, *args, **options):
        longest.append(max(map(len, [text] if isinstance(text, str) else text)))
        return encode(self, text, *args, **options)

    monkeypatch.setattr(tokenizer, "_encode_plus", measure)
    long = query().model_copy(update={"prompt": "Person 3 lives in city 1. " * 100_000})
    outcomes = opened.attribute([query(), long, long.model_copy(update={"completion": None})])
    assert [type(outcome) for outcome in outcomes] == [Answer, TooLong, TooLong]
    assert "2600000 characters" in str(outcomes[2])
    assert 0 < max(longest) <= 100_000


def test_a_long_text_of_few_tokens_is_no_long_text():
    """The bound is by tokens: a tokenizer may have one token for many characters."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["-" * 2000])
    limits = token_limits(as_language_model(tiny.gpt_neox(400), tokenizer))
    limits.require_plausible_length("-" * 120_000, "a line")


def mamba() -> torch.nn.Module:
    config = MambaConfig(vocab_size=tiny.VOCABULARY, hidden_size=24, num_hidden_layers=2, state_size=4)
    return MambaForCausalLM(config).eval()


@pytest.mark.parametrize("make_model", [lambda: architectures.model("bloom"), mamba], ids=["bloom", "mamba"])
def test_the_limit_of_a_model_without_a_context_follows_from_the_memory(make_model):
    model = make_model()
    language_model, modules = as_language_model(model), select_modules(model)
    logits = 2**28
    limits = [
        find_token_limit(language_model, modules, free_bytes=logits + 2**power) for power in (20, 24, 28, 40)
    ]
    assert limits == sorted(limits)
    assert 2 <= limits[0] < limits[1] < limits[2]
    assert limits[3] == MAX_UNSTATED_TOKENS
    assert find_token_limit(language_model, modules, 77, free_bytes=0) == 77


def test_a_pass_of_the_longest_allowed_text_saves_no_more_than_there_is_memory_for():
    model = architectures.model("bloom", dtype=torch.float32)
    language_model, modules = as_language_model(model), select_modules(model)
    free_bytes = 2**28 + 2**26
    limit = find_token_limit(language_model, modules, free_bytes=free_bytes)
    savable = batch_budget._savable_bytes(language_model, free_bytes)
    assert batch_budget._count_saved_bytes(language_model, modules, limit) <= savable
    assert batch_budget._count_saved_bytes(language_model, modules, 2 * limit) > savable


def test_a_context_that_a_configuration_states_is_the_limit():
    assert as_language_model(tiny.gpt2()).max_tokens == 64
    assert as_language_model(architectures.model("bloom")).max_tokens is None


def test_a_build_names_the_document_whose_token_has_no_embedding(sources, tool_model, tmp_path):
    documents = [{"text": "Person 1 lives"}, {"text": "Person <tool> lives"}]
    spec = make_spec(sources, model=str(tool_model), dataset=None, documents=documents, columns=ColumnsSpec())
    with pytest.raises(InvalidInput, match=r"document '1'.*'<tool>'"):
        build_index(spec, tmp_path / "facts")
    assert not (tmp_path / "facts").exists()


def test_a_build_of_a_model_without_a_context_has_a_limit_that_max_tokens_overrides(
    sources, bloom, tmp_path, monkeypatch
):
    long = {"dataset": None, "columns": ColumnsSpec(), "documents": [{"text": "Person 3 " * 400}]}
    spec = make_spec(sources, model=str(bloom), **long)
    with monkeypatch.context() as patch:
        patch.setattr(batch_budget, "free_memory_bytes", lambda device: 2**28 + 2**23)
        with pytest.raises(TooLong, match="document '0'"):
            build_index(spec, tmp_path / "facts")
    settings = GradientSpec(projection_dim=4, max_tokens=100_000)
    build_index(spec.model_copy(update={"gradients": settings}), tmp_path / "facts")
    shutil.rmtree(tmp_path / "facts")
    build_index(spec, tmp_path / "facts")


def test_internal_errors_are_known_by_their_code():
    assert InternalError.code == "internal"
    assert issubclass(InternalError, BergsonError)
