"""What else was tried: independent projections, damping, labels, embeddings, checkpoints, fusion.

Legend: q queries, n documents.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.methods import BM25, RECOMMENDED, SMALL_ROWS, Method
from benchmarks.quality.projected_rows import Storage, row_products
from benchmarks.quality.unprojected import can_compare_whole_gradients, unprojected_products
from benchmarks.support.bit_codes import row_bytes
from benchmarks.support.row_variants import RowVariants
from bergson_core.evaluation.trainers import BuiltInTrainer
from bergson_core.evaluation.training_loop import reproducible, train_causal_model
from bergson_core.gradients.normalizers import moments
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.schemas.build import GradientSpec
from bergson_core.utils.atomic_files import atomic_path

GROUP: Final = "alternatives"
SMALL_SPEC: Final = GradientSpec(normalizer="kfac", projection_dim=32)
"""The rows of `SMALL_ROWS`, from which most alternatives differ in one choice."""
INDEPENDENT_DIMS: Final = (32, 64, 96)
SIGN: Final = Storage("sign")
EMBEDDINGS_AND_HEAD: Final = r"^(?!.*\.wpe$)"
"""All modules but the embedding of positions of GPT-2, which is not run sample by sample."""
DAMPINGS: Final = (1e-1, 1e-2, 1e-4)
CHECKPOINT_SEED: Final = 7
FUSION_K: Final = 60


def iter_alternatives(
    experiment: Experiment, tables: Mapping[str, Float[np.ndarray, "q n"]]
) -> Iterator[Method]:
    """Yields methods that differ in one choice from one that is measured anyway.

    Args:
        experiment: An experiment whose model was trained from scratch.
        tables: Scores of the methods that were measured already, by name.
    """
    for p in INDEPENDENT_DIMS:
        changes = {"projection": "rademacher", "projection_dim": p}
        yield _sign_rows(experiment, f"kfac, sign, p = {p}, block, all, independent projections", **changes)
    for damping in DAMPINGS:
        with kfac_damping(damping):
            yield _sign_rows(experiment, f"kfac damped by {damping:g}, sign, p = 32, block, all")
            if can_compare_whole_gradients(experiment):
                scores = unprojected_products(experiment, ["kfac"])["kfac"].scores("row").numpy()
                yield Method(f"kfac damped by {damping:g}, not projected, row, all", GROUP, None, scores)
    yield _sign_rows(experiment, "kfac of sampled labels, sign, p = 32, block, all", fit_labels="sampled")
    yield _sign_rows(
        experiment, "kfac, sign, p = 32, block, embeddings and head too", modules=EMBEDDINGS_AND_HEAD
    )
    recommended = tables.get(RECOMMENDED)
    if recommended is not None:
        fused = fuse_rankings(recommended, tables[BM25])
        yield Method(f"{RECOMMENDED}, fused with BM25 by rank", GROUP, None, fused)
    checkpoints = checkpoint_scores(experiment)
    yield Method(f"{SMALL_ROWS}, another run's end", GROUP, None, checkpoints[-1].numpy())
    averaged = torch.stack(checkpoints).mean(0).numpy()
    yield Method(f"{SMALL_ROWS}, its three checkpoints averaged", GROUP, None, averaged)


@contextmanager
def kfac_damping(damping: float) -> Iterator[None]:
    """Damps K-FAC by `damping` while the context is open; users cannot set this."""
    damping_before = moments.KFAC_DAMPING
    setattr(moments, "KFAC_DAMPING", damping)  # noqa: B010 - a Final cannot be assigned to
    try:
        yield
    finally:
        setattr(moments, "KFAC_DAMPING", damping_before)  # noqa: B010


def checkpoint_scores(experiment: Experiment) -> list[Float[Tensor, "q n"]]:
    """Returns the recommended scores at a half, at three quarters and at the end of another training run."""
    path, case = experiment.directory / "checkpoints.npy", experiment.case
    if not path.is_file():
        scores = [
            RowVariants(checkpoint, case.documents, case.queries, SMALL_SPEC).sign_scores()
            for checkpoint in _train_with_checkpoints(experiment)
        ]
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, torch.stack(scores).numpy())
    return list(torch.from_numpy(np.load(path)))


def fuse_rankings(
    scores: Float[np.ndarray, "q n"], other_scores: Float[np.ndarray, "q n"]
) -> Float[np.ndarray, "q n"]:
    """Returns the scores of reciprocal rank fusion (Cormack et al., 2009, with its k = 60)."""
    ranks, other_ranks = (np.argsort(np.argsort(-table, axis=1), axis=1) for table in (scores, other_scores))
    return 1 / (FUSION_K + 1 + ranks) + 1 / (FUSION_K + 1 + other_ranks)


def _sign_rows(experiment: Experiment, name: str, **changes: object) -> Method:
    spec = SMALL_SPEC.model_copy(update=changes)
    table = row_products(experiment, spec, [SIGN])[SIGN]
    size = row_bytes(SIGN.code, len(table.modules), spec.projection_dim**2)
    return Method(name, GROUP, size, table.scores("block").numpy())


def _train_with_checkpoints(experiment: Experiment) -> list[LanguageModel]:
    trainer, tokenizer = cast(BuiltInTrainer, experiment.trainer), experiment.case.model.tokenizer
    assert tokenizer is not None  # load_model always returns one
    config, schedule = experiment.case.model.model.config, trainer.schedule
    with reproducible(0, schedule.threads):
        model = AutoModelForCausalLM.from_config(config)
    steps = schedule.steps(len(trainer.documents))
    checkpoints: list[LanguageModel] = []

    def save_checkpoint(step: int, _total: int, _note: str) -> None:
        if step in (steps // 2, 3 * steps // 4, steps):
            copy = AutoModelForCausalLM.from_config(config)
            copy.load_state_dict(model.state_dict())
            checkpoints.append(as_language_model(copy.requires_grad_(False).eval(), tokenizer))

    with reproducible(CHECKPOINT_SEED, schedule.threads):
        end_token = cast("int | None", tokenizer.eos_token_id)
        train_causal_model(model, trainer.documents, end_token, schedule, save_checkpoint)
    return checkpoints
