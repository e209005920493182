"""The experiments of the toxicity task, and the methods that are measured in them.

The names of methods are those of `benchmarks.quality.methods`.
"""

from collections.abc import Iterator
from typing import Final

from benchmarks.corpora.corpus import Corpus
from benchmarks.models.cases import Case, ModelKind
from benchmarks.models.fine_tuning import LORA_RANK, fine_tune
from benchmarks.models.small_models import SCHEDULE, SMALL_MODELS, train_small_model
from benchmarks.models.smollm2 import prepare_smollm2
from benchmarks.quality.experiments import Experiment, Settings, retrain
from benchmarks.quality.methods import (
    DEFAULT,
    GOLD,
    RECOMMENDED,
    SMALL_ROWS,
    Method,
    iter_baselines,
    iter_foreign_scores,
    iter_row_variants,
)
from benchmarks.quality.module_sets import ALL, select_module_sets
from benchmarks.quality.projected_rows import Storage, row_products
from benchmarks.quality.unprojected import (
    Whitening,
    can_compare_whole_gradients,
    full_row_bytes,
    unprojected_products,
)
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import GradientSpec, Normalize
from bergson_core.schemas.training import TrainingSchedule

WHOLE_GRADIENTS: Final[tuple[tuple[Whitening, Normalize], ...]] = (
    ("none", "none"),
    ("none", "row"),
    ("kfac", "row"),
)
"""Whitening and normalisation of whole gradients; without whitening they are Grad Dot and Grad Sim of DATE-LM."""
ROWS: Final = (
    (GradientSpec(projection_dim=16), Storage("float16", preconditioned=True), DEFAULT),
    (GradientSpec(normalizer="kfac", projection_dim=32), Storage("sign"), SMALL_ROWS),
    (GradientSpec(normalizer="kfac", projection_dim=96), Storage("sign"), RECOMMENDED),
)
"""How gradients become rows, how the rows are stored, and the name of the method."""


def prepare_toxicity(
    corpus: Corpus, kind: ModelKind, settings: Settings, schedule: TrainingSchedule | None = None
) -> Experiment:
    """Trains a model on the rows of a corpus, unless it is there, and returns the experiment.

    Args:
        corpus: The rows, and the references as its queries.
        kind: Kind of the model.
        settings: Directory of what is kept, and seed.
        schedule: Batch size, number of steps and learning rate; by default those of the kind.

    Raises:
        ModelNotFound: The pretrained model is not on this machine.
    """
    cache, seed = settings.data_dir, settings.seed
    if kind in SMALL_MODELS:
        start = path = train_small_model(corpus, kind, cache, schedule or SCHEDULE, seed)
    else:
        start = prepare_smollm2(cache)
        path = fine_tune(corpus, start, cache, LORA_RANK if kind == "lora" else None, schedule, seed)
    model = load_model(str(path))
    assert model.tokenizer is not None  # load_model always returns one
    documents, references = corpus.tokenize(model.tokenizer)
    directory = corpus.save(cache / "corpora")
    case = Case(corpus.name, kind, corpus, directory, start, path, model, documents, references)
    return retrain(case, case.trainer(), 0, settings)


def iter_toxicity_methods(experiment: Experiment) -> Iterator[Method]:
    """Yields the baselines, whole gradients, rows, and the scores of other programs.

    Whole gradients are left out where those of all references do not fit into memory.
    """
    yield from (method for method in iter_baselines(experiment) if method.name != GOLD)
    sets = select_module_sets(experiment.case.model)
    if can_compare_whole_gradients(experiment):
        tables = unprojected_products(experiment, sorted({whitening for whitening, _ in WHOLE_GRADIENTS}))
        for whitening, normalize in WHOLE_GRADIENTS:
            scores = tables[whitening].scores(normalize).numpy()
            name = f"{whitening}, not projected, {normalize}, {ALL}"
            yield Method(name, "whole gradients", full_row_bytes(experiment, sets[ALL]), scores)
    for spec, storage, name in ROWS:
        variants = iter_row_variants(spec, row_products(experiment, spec, [storage]), sets)
        yield from (method for method in variants if method.name == name)
    yield from iter_foreign_scores(experiment)
