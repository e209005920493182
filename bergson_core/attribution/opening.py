"""Opens the parts of an index, of which `AttributionIndex` consists, and checks that they belong together."""

from dataclasses import dataclass, replace
from pathlib import Path

from bergson_core.attribution.answering import QueryAnswerer
from bergson_core.attribution.behaviours.behaviours import Behaviours
from bergson_core.attribution.follow_up.rescoring import Rescorer
from bergson_core.attribution.follow_up.word_order import WordOrder
from bergson_core.attribution.queries.query_tokenizer import QueryTokenizer
from bergson_core.attribution.token_influence import ScoreDecomposer
from bergson_core.attribution.verification import Verifier
from bergson_core.errors import IndexCorrupt, InvalidInput
from bergson_core.gradients.checkpoints.collector import open_row_collector
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.executor import Executor
from bergson_core.models.batch_budget import find_token_limit
from bergson_core.models.index_model import load_index_model
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import LoadModel
from bergson_core.schemas.build import GradientSpec
from bergson_core.search.searcher import Searcher
from bergson_core.storage.damaged_shards import damaged_shards_error
from bergson_core.storage.manifest import Manifest, ModuleEntry, read_manifest


@dataclass(frozen=True)
class IndexParts:
    """The open parts of an index; `AttributionIndex` says what each of them is."""

    name: str
    manifest: Manifest
    model: LanguageModel
    collector: RowCollector
    processor: GradientProcessor
    searcher: Searcher
    answerer: QueryAnswerer
    behaviours: Behaviours
    rescorer: Rescorer
    word_order: WordOrder
    verifier: Verifier


def open_index_parts(
    root: Path,
    load_model: LoadModel | None,
    partial: bool,
    executor: Executor,
    max_query_tokens: int | None,
) -> IndexParts:
    """Opens the newest generation of the index in the directory `root`.

    Args and errors are those of `AttributionIndex.open`.
    """
    while True:
        manifest = read_manifest(root)
        # Files may be missing because a new generation was published meanwhile, which removes those of the old one.
        try:
            parts = _open_generation(root, manifest, load_model, partial, executor, max_query_tokens)
            if not parts.searcher.damaged or _is_current(root, manifest):
                return parts
        except (IndexCorrupt, FileNotFoundError) as error:
            if not _is_current(root, manifest):
                continue
            if isinstance(error, IndexCorrupt):
                raise
            raise IndexCorrupt(f"a file of {root} is missing: {error}") from error


def _open_generation(
    root: Path,
    manifest: Manifest,
    load_model: LoadModel | None,
    partial: bool,
    executor: Executor,
    max_query_tokens: int | None,
) -> IndexParts:
    _require_consecutive_shards(root, manifest)
    spec, searcher = manifest.spec, executor.open_searcher(root, manifest)
    has_others = len(searcher.damaged) < len(manifest.shards)
    if searcher.damaged and not (partial and has_others):
        raise damaged_shards_error(root.name, searcher.damaged, has_others)
    processor = GradientProcessor.load(root / "statistics")
    _require_same_projection(root, processor, spec.gradients)
    model = load_index_model(root, manifest, load_model)
    collector = _make_collector(root, manifest, model, processor)
    # A limit for all indexes of a worker may be larger than the context of one model.
    limits = [limit for limit in (max_query_tokens, model.max_tokens) if limit is not None]
    query_tokens = find_token_limit(model, collector.modules, min(limits, default=None))
    query_tokenizer = QueryTokenizer(replace(model, max_tokens=query_tokens), spec.gradients.loss)
    behaviours = Behaviours(root, manifest, processor, collector, query_tokenizer, searcher)
    answerer = QueryAnswerer(
        index=root.name,
        manifest=manifest,
        collector=collector,
        searcher=searcher,
        query_tokenizer=query_tokenizer,
        behaviours=behaviours,
        score_decomposer=ScoreDecomposer(root, manifest, model, processor, collector),
    )
    return IndexParts(
        name=root.name,
        manifest=manifest,
        model=model,
        collector=collector,
        processor=processor,
        searcher=searcher,
        answerer=answerer,
        behaviours=behaviours,
        rescorer=Rescorer(manifest, collector, processor, searcher),
        word_order=WordOrder(root, answerer, searcher),
        verifier=Verifier(manifest, model, searcher),
    )


def _is_current(root: Path, manifest: Manifest) -> bool:
    return read_manifest(root).generation == manifest.generation


def _require_consecutive_shards(root: Path, manifest: Manifest) -> None:
    """Raises `IndexCorrupt` unless the shards of a manifest are as many rows, one after another, as it says."""
    first_row = 0
    for shard in manifest.shards:
        if shard.first_row != first_row:
            raise _inconsistent(
                root, f"shard {shard.name} begins with row {shard.first_row}; expected {first_row}"
            )
        first_row += shard.rows
    if first_row != manifest.rows or not manifest.shards:
        raise _inconsistent(
            root, f"its shards have {first_row} rows; expected {manifest.rows}, and one at least"
        )


def _require_same_projection(root: Path, processor: GradientProcessor, settings: GradientSpec) -> None:
    """Raises `IndexCorrupt` unless the processor projects as the manifest says that the rows were projected."""
    stated = {name: getattr(settings, name) for name in processor.settings}
    if processor.settings != stated:
        raise _inconsistent(
            root,
            f"it says that the rows were projected with {stated}, but the processor in the directory statistics has "
            f"{processor.settings}",
        )


def _make_collector(
    root: Path, manifest: Manifest, model: LanguageModel, processor: GradientProcessor
) -> RowCollector:
    """Returns a collector of rows like those of the index. Raises `IndexCorrupt` if the model does not make such."""
    try:
        collector = open_row_collector(model, processor, [module.name for module in manifest.modules])
    except InvalidInput as error:
        raise _inconsistent(root, f"its modules are not those of the model: {error}") from error
    modules = tuple(
        ModuleEntry(name=module.name, out_features=module.out_features, in_features=module.in_features)
        for module in collector.modules.values()
    )
    if (modules, collector.dimensions) != (manifest.modules, manifest.dimensions):
        raise _inconsistent(root, "its modules or its dimensions are not those of the model")
    return collector


def _inconsistent(root: Path, problem: str) -> IndexCorrupt:
    return IndexCorrupt(
        f"the manifest of the index {root.name} does not fit together: {problem}; restore the files from a copy or "
        "build the index again"
    )
