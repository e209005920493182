"""Passes that collect and encode rows as a build does, beside the bare pass, with and without a compiled backbone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from torch.nn.functional import cosine_similarity

from benchmarks.support.passes import run_floor
from benchmarks.support.timing import measure_alternately
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.device_to_host import overlap_copies
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build import NormalizerKind, RowKind
from bergson_core.shards.codecs import CODECS
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.tokenization import Tokens

FLOOR: Final = "bare pass"
ROWS: Final[Mapping[str, tuple[NormalizerKind, RowKind, int]]] = {
    "adafactor, float16, p = 16": ("adafactor", "float16", 16),
    "kfac, sign, p = 32": ("kfac", "sign", 32),
}
"""Name → the normalizer, the code and p."""
MIN_COMPILED_COSINE: Final = 0.99
"""Least cosine of a row to the one that the model gives without compilation."""
_SAMPLE: Final = 4
"""Documents that normalizers are fitted to, which says nothing about the time of a pass."""


def make_encoders(model: LanguageModel, documents: Sequence[Tokens]) -> dict[str, RowEncoder]:
    """Returns an encoder for each kind of `ROWS`."""
    modules, encoders = model.select_modules(), {}
    for name, (kind, code, p) in ROWS.items():
        sample = iter_batches(documents[:_SAMPLE], len(documents[0].ids), model.device)
        processor = GradientProcessor(p, fit_normalizers(model, modules, sample, kind))
        encoders[name] = RowEncoder(RowCollector(model, processor), code)
    return encoders


def make_passes(
    model: LanguageModel, encoders: Mapping[str, RowEncoder], batches: Sequence[Batch]
) -> dict[str, Callable[[], None]]:
    """Returns the bare pass over all batches and the pass of each encoder."""
    passes: dict[str, Callable[[], None]] = {FLOOR: lambda: run_floor(model, batches)}
    for name, encoder in encoders.items():
        passes[name] = lambda encoder=encoder: encode_all(encoder, batches)
    return passes


def encode_all(encoder: RowEncoder, batches: Sequence[Batch]) -> None:
    """Encodes all batches as a build does: codecs run on the device, and bytes are copied while the next batch runs."""
    codec = CODECS[encoder.kind]
    for _ in overlap_copies(codec.encode(encoder.encode(batch)[0]) for batch in batches):
        pass


def measure_compiled(
    model: LanguageModel, encoders: Mapping[str, RowEncoder], batches: Sequence[Batch], rounds: int
) -> dict[str, list[float]]:
    """Returns the seconds of passes with a compiled backbone, of those whose rows stay right.

    Raises:
        RuntimeError: The backbone cannot be compiled.
    """
    backbone = model.backbone if model.backbone is not None else model.model
    expected = {name: encoder.encode(batches[0])[0].float().flatten(1) for name, encoder in encoders.items()}
    backbone.compile()
    try:
        right = {
            name: encoder
            for name, encoder in encoders.items()
            if cosine_similarity(encoder.encode(batches[0])[0].float().flatten(1), expected[name]).min()
            >= MIN_COMPILED_COSINE
        }
        seconds = measure_alternately(make_passes(model, right, batches), rounds)
    finally:
        backbone._compiled_call_impl = None
    return {f"{name}, compiled": times for name, times in seconds.items()}
