"""Scores of an index over several checkpoints, against plain autograd in float64 at each of them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bergson_core import AttributionIndex, build_index
from bergson_core.data.documents import load_documents
from bergson_core.gradients.checkpoints.processors import checkpoint_seed
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import GradientSpec, Normalize, ScoringSpec
from bergson_core.tokens.document_tokens import tokenize_records
from bergson_core.tokens.tokenization import tokenize
from tests import reference
from tests.core.helpers import make_spec

PROMPT, COMPLETION = "Person 3 lives in", " city 1."
P = 4


def scores_at_checkpoint(directory: str, number: int, spec, normalize: Normalize) -> torch.Tensor:
    """Returns the score of each document at one checkpoint, from projected gradients of a loop of autograd."""
    model = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    loaded = load_model(directory)
    documents = load_documents(spec)
    tokens = tokenize_records(loaded.tokenizer, documents.read(range(len(documents))))
    names = list(loaded.select_modules())
    texts = [*tokens, *tokenize(loaded.tokenizer, [PROMPT], [COMPLETION], label_end=False)]
    gradients = reference.gradients(model, names, texts)
    seed = checkpoint_seed(0, number)
    rows = torch.stack([reference.project(gradients[name], name, P, seed) for name in names], dim=1)
    train, query = rows[:-1], rows[-1]
    if normalize == "block":
        return torch.nn.functional.cosine_similarity(train, query, dim=2).mean(1)
    train, query = train.flatten(1), query.flatten()
    if normalize == "row":
        return torch.nn.functional.cosine_similarity(train, query, dim=1)
    return train @ query


@pytest.mark.parametrize("normalize", ["row", "block", "none"])
def test_a_score_is_the_mean_of_the_scores_at_the_checkpoints(
    normalize: Normalize, sources: Path, run: list[str], tmp_path: Path
) -> None:
    spec = make_spec(
        sources,
        model=run[-1],
        models=run,
        dtype="float64",
        gradients=GradientSpec(projection_dim=P, normalizer="none"),
        scoring=ScoringSpec(normalize=normalize, preconditioner=False),
    )
    build_index(spec, tmp_path / "index", shard_rows=16)
    index = AttributionIndex.open(tmp_path / "index")
    answer = index.query(PROMPT, COMPLETION, top_k=40)
    expected = torch.stack([scores_at_checkpoint(path, n, spec, normalize) for n, path in enumerate(run)])
    scores = {row.id: row.score for row in answer.results}
    assert len(scores) == 40
    got = torch.tensor([scores[f"doc-{k}"] for k in range(40)], dtype=torch.float64)
    torch.testing.assert_close(got, expected.mean(0), rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
