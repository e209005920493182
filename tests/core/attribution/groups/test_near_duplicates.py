"""Documents that are nearly the same to the model are grouped together."""

import numpy as np
import pytest
import torch

from bergson_core import AttributionIndex, build_index, find_document_numbers, group_near_duplicates
from bergson_core.attribution.follow_up.row_cosines import (
    cosines_from_sign_products,
    label_components,
    multiply_near_rows,
    sign_product,
)
from bergson_core.attribution.groups.near_duplicates import MAX_DOCUMENTS
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.shards.codecs import CODECS
from tests import tiny
from tests.core.helpers import make_spec, rows_by_definition

ROWS_AND_NORMALIZE = [("float16", "row"), ("int8", "block"), ("float16", "none"), ("sign", "block")]


@pytest.fixture(scope="module")
def built(request, sources, tmp_path_factory):
    """An index of two shards in which document k + 9 repeats document k."""
    rows, normalize = request.param
    path = tmp_path_factory.mktemp("indexes") / "facts"
    spec = make_spec(
        sources,
        dataset=None,
        documents=tuple({"text": text} for text in tiny.texts(9) * 2),
        columns=ColumnsSpec(),
        gradients=GradientSpec(projection_dim=8, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=False),
    )
    build_index(spec, path, shard_rows=12)
    return AttributionIndex.open(path), spec, path


@pytest.mark.parametrize("built", ROWS_AND_NORMALIZE, indirect=True)
def test_repeated_documents_are_grouped_in_the_order_in_which_they_are_given(built):
    opened, *_ = built
    numbers = [12, 3, 7, 0, 16, 7]
    assert group_near_duplicates(opened, numbers, threshold=0.999) == [[12, 3], [7, 16], [0]]


@pytest.mark.parametrize("built", ROWS_AND_NORMALIZE[:3], indirect=True)
def test_groups_are_the_connected_components_of_the_cosines(built):
    opened, spec, path = built
    rows = rows_by_definition(path, spec)
    if spec.scoring.normalize != "block":
        rows = rows.flatten(1)[:, None]
    unit = torch.nn.functional.normalize(rows, dim=2)
    cosines = torch.einsum("amd,bmd->ab", unit, unit) / unit.shape[1]
    ordered = cosines[:9, :9].flatten().sort().values
    gaps = ordered.diff()
    for place in gaps.argsort(descending=True)[:5]:  # thresholds that rounding does not reach
        threshold = (ordered[place] + ordered[place + 1]).item() / 2
        if 0 < threshold < 1:
            assert group_near_duplicates(opened, range(18), threshold=threshold) == plain_groups(
                cosines >= threshold
            )


def plain_groups(pairs: torch.Tensor) -> list[list[int]]:
    """Returns the connected components, found by joining pair by pair."""
    labels = list(range(len(pairs)))
    for a, b in pairs.nonzero().tolist():
        labels = [labels[a] if label == labels[b] else label for label in labels]
    return groups_of(labels)


def groups_of(labels: list[int]) -> list[list[int]]:
    return sorted([k for k, other in enumerate(labels) if other == label] for label in dict.fromkeys(labels))


@pytest.mark.parametrize("least", [0.05, 0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("width", [3, 4, 37])
def test_no_pair_is_lost_where_rows_are_left_out_early(least, width):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(40, width)) * generator.uniform(0, 1, 40)[:, None]
    rows[20:30] = rows[:10] + 0.2 * generator.normal(size=(10, width)) * np.linspace(0, 1, 10)[:, None]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[35:] = 0
    left, products = multiply_near_rows(rows, least)
    np.testing.assert_allclose(products, rows[left] @ rows[left].T, atol=1e-12)
    expected = rows @ rows.T >= least
    np.fill_diagonal(expected, False)
    assert set(np.flatnonzero(expected.any(1))) <= set(left.tolist())
    assert len(multiply_near_rows(np.eye(40), least)[0]) == 0


@pytest.mark.parametrize("cosine", [0.01, 0.5, 0.95, 1.0])
def test_a_product_of_signs_stands_for_its_cosine(cosine):
    product = torch.tensor([[sign_product(cosine)]], dtype=torch.float64)
    assert cosines_from_sign_products(product).item() == pytest.approx(cosine)


@pytest.mark.parametrize("share", [0, 0.01, 0.03, 0.1, 1])
def test_components_are_those_of_joining_pair_by_pair(share):
    torch.manual_seed(0)
    pairs = torch.rand(60, 60) < share
    pairs |= pairs.mT.clone()
    labels = label_components(pairs.numpy()).tolist()
    assert groups_of(labels) == plain_groups(pairs)


def test_a_chain_of_pairs_is_one_group():
    pairs = torch.zeros(50, 50, dtype=torch.bool)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    pairs[order[:-1], order[1:]] = pairs[order[1:], order[:-1]] = True
    assert label_components(pairs.numpy()).tolist() == [0] * 50


def test_the_cosine_is_estimated_from_the_signs_of_projections():
    torch.manual_seed(0)
    row, independent = torch.randn(2, 1, 4, 10_000)
    for cosine in (0.0, 0.5, 0.95, 1.0):
        rows = torch.cat([row, cosine * row + (1 - cosine**2) ** 0.5 * independent])
        codec = CODECS["sign"]
        stored = codec.decode(*(part.numpy() for part in codec.encode(rows)), 10_000).flatten(1)
        cosines = cosines_from_sign_products(stored @ stored.mT)
        torch.testing.assert_close(cosines, torch.tensor([[1.0, cosine], [cosine, 1.0]]), rtol=0, atol=0.02)


def test_a_document_without_a_gradient_is_like_no_other(sources, tmp_path):
    documents = tuple({"text": text} for text in ("a", "b", "a b c"))
    build_index(
        make_spec(sources, dataset=None, documents=documents, columns=ColumnsSpec()), tmp_path / "facts"
    )
    assert group_near_duplicates(AttributionIndex.open(tmp_path / "facts"), [0, 1]) == [[0], [1]]


def test_documents_are_found_by_their_ids(index):
    opened = AttributionIndex.open(index)
    assert find_document_numbers(opened, ["doc-39", "doc-0", "doc-16"]) == [39, 0, 16]
    with pytest.raises(InvalidInput, match="'doc-40'"):
        find_document_numbers(opened, ["doc-1", "doc-40"])


@pytest.mark.parametrize(
    ("numbers", "options", "message"),
    [
        ([0, 40], {}, "0 to 39; it has no document 40"),
        ([-1], {}, "no document -1"),
        (range(MAX_DOCUMENTS + 1), {}, "at most 1000"),
        ([0], {"threshold": 0}, "above 0"),
        ([0], {"profile": "law"}, "it has default"),
    ],
)
def test_bad_input_is_refused(index, numbers, options, message):
    with pytest.raises(InvalidInput, match=message):
        group_near_duplicates(AttributionIndex.open(index), numbers, **options)


def test_no_documents_have_no_groups(index):
    assert group_near_duplicates(AttributionIndex.open(index), []) == []
