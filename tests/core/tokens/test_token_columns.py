"""Columns beside `input_ids` are honoured, or refused by name; none that changes the meaning is passed over."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import GradientProcessor, collect_gradients, fit_processor
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.build import GradientSpec
from bergson_core.schemas.source import ColumnsSpec
from tests import tiny

IDS = [5, 9, 2, 7, 3, 8]
N = len(IDS)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def gradient(model, loss="sum", columns=None, **values) -> tuple[np.ndarray, float]:
    """Returns the gradient and the loss of the first row of a dataset with these columns."""
    dataset = Dataset.from_dict(values)
    result = collect_gradients(model, dataset, None, GradientProcessor(None), loss=loss, columns=columns)
    return np.array(result[0]["gradients"]), result[0]["loss"]


def padded(values: list[int], left: int, right: int, filler: int) -> list[int]:
    return [filler] * left + values + [filler] * right


@pytest.mark.parametrize(("left", "right"), [(0, 5), (5, 0), (2, 3), (0, 0)])
@pytest.mark.parametrize("labels", [None, [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
def test_padding_that_the_mask_marks_changes_nothing(model, left, right, labels):
    alone = {"input_ids": [IDS]}
    with_padding = {
        "input_ids": [padded(IDS, left, right, 0)],
        "attention_mask": [padded([1] * N, left, right, 0)],
        "position_ids": [padded(list(range(N)), left, right, 1)],
    }
    if labels is not None:
        marked = [token if label else -100 for token, label in zip(IDS, labels, strict=True)]
        alone["labels"], with_padding["labels"] = [marked], [padded(marked, left, right, -100)]
    expected, expected_loss = gradient(model, **alone)
    actual, loss = gradient(model, **with_padding)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    assert loss == pytest.approx(expected_loss)


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "assistant_mask", "loss_mask"])
def test_a_mask_of_labelled_tokens_does_what_the_same_labels_do(model, name):
    mask = [0, 0, 0, 1, 0, 1]
    labels = [token if label else -100 for token, label in zip(IDS, mask, strict=True)]
    expected, expected_loss = gradient(model, input_ids=[IDS], labels=[labels])
    for value in (mask, [bool(label) for label in mask]):
        actual, loss = gradient(model, input_ids=[IDS], **{name: [value]})
        np.testing.assert_array_equal(actual, expected)
        assert loss == expected_loss
    both, _ = gradient(model, input_ids=[IDS], labels=[labels], **{name: [mask]})
    np.testing.assert_array_equal(both, expected)


def test_what_says_nothing_is_accepted(model):
    expected, _ = gradient(model, input_ids=[IDS])
    actual, _ = gradient(
        model,
        input_ids=[IDS],
        attention_mask=[[1] * N],
        position_ids=[list(range(N))],
        seq_lengths=[[N]],
        token_type_ids=[[0] * N],
        labels=[IDS],
        special_tokens_mask=[[1] + [0] * (N - 1)],
        length=[N],
        text=["anything"],
        id=[7],
        source=["wiki"],
        tags=[["a"] * N],
        embedding=[[0.5] * (N + 1)],
    )
    np.testing.assert_array_equal(actual, expected)


REFUSED = {
    "a hole in the mask": ({"attention_mask": [1, 1, 0, 1, 1, 1]}, "attention_mask.*between"),
    "a mask of sequence numbers": ({"attention_mask": [1, 1, 1, 2, 2, 2]}, "attention_mask.*2.*0 and 1"),
    "a mask of fractions": ({"attention_mask": [1.0, 0.5, 1, 1, 1, 1]}, "attention_mask"),
    "a nested mask": ({"attention_mask": [[1] * N] * N}, "attention_mask"),
    "a short mask": ({"attention_mask": [1]}, "attention_mask.*1 entries"),
    "labels on padding": ({"attention_mask": [1, 1, 1, 1, 0, 0], "labels": IDS}, "labels.*padding"),
    "a completion of padding": (
        {"attention_mask": [1, 1, 1, 1, 0, 0], "completion_mask": [0, 0, 0, 0, 1, 1]},
        "completion_mask.*padding",
    ),
    "short labels": ({"labels": IDS[:-1]}, "labels.*5 entries"),
    "long labels": ({"labels": [*IDS, 1]}, "labels.*7 entries"),
    "shifted labels": ({"labels": [*IDS[1:], -100]}, "labels.*position 0"),
    "other labels": ({"labels": [-100, -100, -100, -100, 3, 4]}, "labels.*4 at position 5"),
    "labels that are numbers": ({"labels": [float(token) for token in IDS]}, "labels.*whole numbers"),
    "a class": ({"labels": 1}, "labels.*list"),
    "labels that disagree with a mask": (
        {"labels": IDS, "completion_mask": [0, 0, 0, 1, 1, 1]},
        "labels.*completion_mask",
    ),
    "masks that disagree": (
        {"completion_mask": [0, 0, 0, 1, 1, 1], "assistant_masks": [0, 0, 0, 0, 1, 1]},
        "completion_mask.*assistant_masks",
    ),
    "positions that start again": ({"position_ids": [0, 1, 2, 0, 1, 2]}, "position_ids"),
    "positions that start at two": ({"position_ids": [2, 3, 4, 5, 6, 7]}, "position_ids"),
    "two sequences": ({"seq_lengths": [3, 3]}, "seq_lengths"),
    "types of tokens": ({"token_type_ids": [0, 0, 0, 1, 1, 1]}, "token_type_ids"),
    "boundaries of sequences": ({"cu_seq_lens_q": [0, 3, 6]}, "cu_seq_lens_q"),
    "numbers of sequences": ({"seq_idx": [0, 0, 0, 1, 1, 1]}, "seq_idx"),
    "weights of tokens": ({"loss_weights": [0.5] * N}, "loss_weights"),
    "another decoder": ({"decoder_input_ids": IDS}, "decoder_input_ids"),
    **{
        f"{name} for each token": ({name: value}, name)
        for name in (
            "loss_weight",
            "label_mask",
            "target_mask",
            "prompt_mask",
            "mask",
            "anything",
            "advantages",
        )
        for value in ([0.5] * N, [1] * N, [True] * N)
    },
    **{
        f"{name} of a row": ({name: 2}, name)
        for name in (
            "prompt_length",
            "sample_weight",
            "weights",
            "weight",
            "loss_weight",
            "length",
            "num_tokens",
        )
    },
    "ids that are numbers": ({"input_ids": [float(token) for token in IDS]}, "input_ids.*whole numbers"),
    "ids in a list of lists": ({"input_ids": [IDS, IDS]}, "input_ids"),
    "ragged ids": ({"input_ids": [IDS, IDS[:2]]}, "input_ids"),
    "no ids": ({"input_ids": None}, "input_ids"),
    "text": ({"input_ids": "a text"}, "input_ids"),
    "no class": ({"labels": None}, "labels.*None"),
    "a missing id": ({"input_ids": [1, None, 2]}, "input_ids"),
    "an id beyond the embedding": ({"input_ids": [1, 2, 99_999]}, "99999.*position 2"),
    "the first id beyond the embedding": ({"input_ids": [tiny.VOCABULARY]}, "320"),
    "a negative id": ({"input_ids": [1, -1, 2]}, "-1 at position 1"),
}


@pytest.mark.parametrize(("columns", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("call", ["collect_gradients", "fit_processor"])
def test_what_cannot_be_honoured_is_refused_by_row_and_column(model, columns, message, call):
    dataset = Dataset.from_list([{"input_ids": IDS} | columns])
    processor = GradientProcessor(4)
    calls = {
        "fit_processor": lambda: fit_processor(model, dataset),
        "collect_gradients": lambda: collect_gradients(model, dataset, None, processor),
    }
    with pytest.raises(InvalidInput, match=f"row 0.*{message}"):
        calls[call]()


@pytest.mark.parametrize("column", ["labels", "attention_mask", "completion_mask"])
def test_a_row_without_a_value_that_others_have_is_refused(model, column):
    rows = [{"input_ids": [1, 1, 1], column: [1, 1, 1]}, {"input_ids": IDS}]
    with pytest.raises(InvalidInput, match=f"row 1.*{column}.*None"):
        collect_gradients(model, Dataset.from_list(rows), None, GradientProcessor(4))


def test_the_row_is_that_of_the_dataset_and_not_of_the_sample(model):
    rows = [{"input_ids": IDS}] * 20 + [{"input_ids": [1, 400]}] * 20
    with pytest.raises(InvalidInput, match=r"row (2|3)\d"):
        fit_processor(model, Dataset.from_list(rows), settings=GradientSpec(sample_size=5))


def test_a_dataset_of_tensors_is_read_as_well(model):
    dataset = Dataset.from_dict(
        {"input_ids": [IDS, IDS[::-1]], "attention_mask": [[1] * N, [1] * 4 + [0] * 2]}
    )
    plain = collect_gradients(model, dataset, None, GradientProcessor(4))
    for kind in ("torch", "numpy"):
        columns = ["input_ids", "attention_mask"]
        formatted = collect_gradients(
            model, dataset.with_format(kind, columns=columns), None, GradientProcessor(4)
        )
        assert formatted.with_format(None)["gradients"] == plain["gradients"]


def test_a_row_of_padding_alone_has_a_gradient_of_zeros(model):
    row, loss = gradient(model, input_ids=[IDS], attention_mask=[[0] * N])
    assert not row.any()
    assert loss == 0


def test_weights_of_a_tokenised_dataset_multiply_the_gradients(model):
    expected, _ = gradient(model, input_ids=[IDS])
    actual, _ = gradient(model, input_ids=[IDS], reward=[-2.5], columns=ColumnsSpec(weight="reward"))
    np.testing.assert_allclose(actual, -2.5 * expected, rtol=1e-5)
    with pytest.raises(InvalidInput, match="row 0 of column 'reward'"):
        gradient(model, input_ids=[IDS], reward=[None], columns=ColumnsSpec(weight="reward"))
    with pytest.raises(ColumnNotFound, match="'weight'"):
        gradient(model, input_ids=[IDS], columns=ColumnsSpec(weight="weight"))


@pytest.mark.parametrize("columns", [ColumnsSpec(completion="answer"), ColumnsSpec(messages="chat")])
def test_columns_of_text_need_a_tokenizer(model, columns):
    with pytest.raises(InvalidInput, match="tokenizer"):
        gradient(model, input_ids=[IDS], answer=["a"], chat=["b"], columns=columns)


def test_the_loss_is_that_of_the_model_on_the_unpadded_tokens(model):
    _, loss = gradient(model, input_ids=[padded(IDS, 3, 2, 0)], attention_mask=[padded([1] * N, 3, 2, 0)])
    ids = torch.tensor([IDS])
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item() * (N - 1)
    assert loss == pytest.approx(expected, rel=1e-5)
