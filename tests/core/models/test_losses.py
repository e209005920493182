"""Which tokens the loss is taken over, and what it is multiplied by."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import GradientProcessor, collect_gradients
from bergson_core.data.documents import documents_from_dataset
from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.language_model import as_language_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.chat_template import tokenize_chats
from bergson_core.tokens.tokenization import Tokens, with_loss_weight
from tests import reference, tiny
from tests.core.helpers import CHAT, CHAT_TEMPLATE

EXACT = {"rtol": 1e-8, "atol": 1e-10}


def documents() -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [Tokens.labelled_from(rng.integers(0, tiny.VOCABULARY, size=s), 2) for s in (9, 14, 5)]


def rows_of(model: torch.nn.Module, docs: list[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (rows [n, D], losses [n]) in the documents' order, from one padded batch."""
    collector = RowCollector(as_language_model(model), GradientProcessor(None))
    (batch,) = iter_batches(docs, 1000)
    rows, losses = (torch.empty_like(part) for part in collector.collect(batch))
    rows[batch.indices], losses[batch.indices] = collector.collect(batch)
    return rows, losses


def test_a_weight_multiplies_the_gradient_and_not_the_loss_that_is_reported():
    model, docs, weights = tiny.model(), documents(), torch.tensor([2.0, -0.5, 0.0], dtype=torch.float64)
    rows, losses = rows_of(model, docs)
    weighted = [
        with_loss_weight(tokens, "sum", weight.item()) for tokens, weight in zip(docs, weights, strict=True)
    ]
    weighted_rows, weighted_losses = rows_of(model, weighted)
    torch.testing.assert_close(weighted_rows, rows * weights[:, None], **EXACT)
    torch.testing.assert_close(weighted_losses, losses, **EXACT)


def test_the_mean_loss_is_the_sum_over_its_labelled_tokens():
    model, docs = tiny.model(), documents()
    rows, _ = rows_of(model, docs)
    means, _ = rows_of(model, [with_loss_weight(tokens, "mean") for tokens in docs])
    counts = torch.tensor([tokens.n_labelled for tokens in docs], dtype=torch.float64)
    torch.testing.assert_close(means, rows / counts[:, None], **EXACT)


def log_odds_gradients(model: torch.nn.Module, doc: Tokens) -> torch.Tensor:
    """Returns the gradient [D] of the sum of a document's negative log-odds, by plain autograd."""
    language_model = as_language_model(model)
    names = list(language_model.select_modules())
    ids = torch.from_numpy(doc.ids)
    logits = model(input_ids=ids[None]).logits[0, :-1]
    chosen = logits.softmax(-1).gather(1, ids[1:, None])[:, 0][torch.from_numpy(doc.labels[1:])]
    weights = [model.get_submodule(name).weight for name in names]
    gradients = torch.autograd.grad((torch.log1p(-chosen) - chosen.log()).sum(), weights)
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_log_odds_have_the_gradient_of_plain_autograd_beside_documents_without():
    model, docs = tiny.model("llama"), documents()
    expected, losses = rows_of(model, docs)
    expected[1] = log_odds_gradients(model, docs[1])
    docs[1] = replace(docs[1], log_odds=True)
    rows, reported = rows_of(model, docs)
    torch.testing.assert_close(rows, expected, **EXACT)
    torch.testing.assert_close(reported, losses, **EXACT)


def test_a_token_that_the_model_is_certain_of_has_finite_log_odds():
    model, (doc, *_) = tiny.model("llama").float(), documents()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e4)
    ids = doc.ids.copy()
    ids[1:] = model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1].argmax(-1).numpy()
    certain, _ = rows_of(model, [replace(Tokens.labelled_from(ids, 1), log_odds=True)])
    assert certain.isfinite().all()


def test_labels_may_have_gaps():
    model, (whole, *_) = tiny.model(), documents()
    gapped = Tokens(whole.ids, np.isin(np.arange(9), [2, 5, 6]))
    names = list(select_modules(model))
    expected = reference.gradients(model, names, [gapped])
    flat = torch.cat([expected[name].flatten(1) for name in names], dim=1)
    torch.testing.assert_close(rows_of(model, [gapped])[0], flat, **EXACT)


def test_sampled_labels_give_the_fisher_information_of_the_model():
    """Over many draws, the mean squared gradient is Σ_y p(y) g_y² of autograd, for one predicted token."""
    model = tiny.model()
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h"
    ids = np.array([5, 9, 11])
    weight = model.get_submodule(name).weight
    logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, 1]
    expected = torch.zeros_like(weight)
    for label, p in enumerate(logits.softmax(0).tolist()):
        (gradient,) = torch.autograd.grad(-logits.log_softmax(0)[label], weight, retain_graph=True)
        expected += p * gradient.square()
    docs = [Tokens.labelled_from(ids, 2)] * 4000
    sampler = torch.Generator().manual_seed(0)
    modules = select_modules(model, [name])
    fitted = fit_normalizers(
        as_language_model(model), modules, iter_batches(docs, 3000), "adam", sampler=sampler
    )
    moment = fitted[name].tensors()["second_moment"]
    assert torch.nn.functional.cosine_similarity(moment.flatten(), expected.flatten(), dim=0) > 0.99
    assert moment.sum() == pytest.approx(expected.sum().item(), rel=0.05)


def test_sampled_labels_leave_the_documents_own_alone():
    model, docs = as_language_model(tiny.model()), documents()
    (batch,) = iter_batches(docs, 1000)
    before = batch.input_ids.clone()
    sampled = forward_backward(model, batch, torch.Generator().manual_seed(0))
    assert batch.input_ids.equal(before)
    assert not torch.allclose(sampled, forward_backward(model, batch))


def chat_tokenizer(template: str | None = CHAT_TEMPLATE):
    tokenizer = tiny.tokenizer([*tiny.texts(20), *(message["content"] for message in CHAT)])
    tokenizer.chat_template = template
    return tokenizer


def test_only_what_the_assistant_says_is_labelled():
    tokenizer = chat_tokenizer()
    (tokens,) = tokenize_chats(tokenizer, [CHAT])
    labelled = tokenizer.decode(tokens.ids[tokens.labels])
    assert labelled == "city 1.company 2."
    assert tokenizer.decode(tokens.ids).startswith("<user>Person 3 lives where?<assistant>city 1.")


def test_tokens_of_chats_are_those_of_transformers():
    tokenizer = chat_tokenizer()
    chats = [CHAT, CHAT[:2], [{**CHAT[0], "name": None}, {"role": "assistant", "content": "…ü "}]]
    expected = tokenizer.apply_chat_template(chats, return_dict=True, return_assistant_tokens_mask=True)
    documents = tokenize_chats(tokenizer, chats)
    assert [tokens.ids.tolist() for tokens in documents] == expected["input_ids"]
    assert [tokens.labels.tolist() for tokens in documents] == [
        [False, *map(bool, mask[1:])] for mask in expected["assistant_masks"]
    ]


def test_gradients_of_chats_are_those_of_plain_autograd_over_the_assistants_tokens():
    model, tokenizer = tiny.model(), chat_tokenizer()
    dataset = Dataset.from_dict({"chat": [CHAT[:2], CHAT]})
    result = collect_gradients(
        model, dataset, tokenizer, GradientProcessor(None), columns=ColumnsSpec(messages="chat")
    )
    names = list(select_modules(model))
    expected = reference.gradients(model, names, tokenize_chats(tokenizer, [CHAT[:2], CHAT]))
    flat = torch.cat([expected[name].flatten(1) for name in names], dim=1)
    np.testing.assert_allclose(np.array(result["gradients"]), flat.numpy(), rtol=1e-4, atol=1e-4)


def test_a_chat_is_read_as_json_and_a_weight_as_a_number():
    dataset = Dataset.from_dict({"chat": [CHAT], "reward": [3]})
    (record,) = documents_from_dataset(dataset, ColumnsSpec(messages="chat", weight="reward")).read(range(1))
    assert record.prompt.startswith('[{"role": "user", "content": "Person 3')
    assert (record.weight, record.completion) == (3.0, None)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{{ messages[-1].content }}", "generation"),
        ("{% generation %}{% endgeneration %}{{ raise_exception('no system turns') }}", "no system turns"),
    ],
    ids=["no template", "no turns", "refuses"],
)
def test_a_template_that_cannot_mark_the_assistant_is_an_error(template, message):
    with pytest.raises(InvalidInput, match=message):
        tokenize_chats(chat_tokenizer(template), [CHAT])


@pytest.mark.parametrize("chat", ["hello", [], [{"content": "x"}], None], ids=str)
def test_a_value_that_is_no_chat_is_refused_and_its_row_named(chat):
    documents = documents_from_dataset(Dataset.from_list([{"chat": chat}]), ColumnsSpec(messages="chat"))
    with pytest.raises(InvalidInput, match="row 0 of column 'chat'"):
        documents.read(range(1))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), None, "1", True], ids=str)
def test_a_weight_that_is_no_finite_number_is_refused_and_its_row_named(weight):
    dataset = Dataset.from_list([{"text": "a", "weight": weight}])
    with pytest.raises(InvalidInput, match="row 0 of column 'weight'"):
        documents_from_dataset(dataset, ColumnsSpec(weight="weight")).read(range(1))


def test_completion_and_messages_exclude_each_other():
    with pytest.raises(ValueError, match="not both"):
        ColumnsSpec(completion="a", messages="b")


def test_given_tokens_are_labelled_as_the_trainer_labels_them():
    model = tiny.model()
    ids = [5, 6, 7, 8]
    dataset = Dataset.from_dict({"input_ids": [ids, ids], "labels": [[-100, -100, 7, 8], ids]})
    result = collect_gradients(model, dataset, processor=GradientProcessor(4))
    docs = [Tokens.labelled_from(np.array(ids), first) for first in (2, 1)]
    np.testing.assert_allclose(result["loss"], [reference.loss_of(model, tokens).item() for tokens in docs])
