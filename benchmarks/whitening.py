"""Memory, time and error of fitting K-FAC for one decoder layer in the shapes of Llama 3 8B.

    python -m benchmarks.whitening [--tokens 2048] [--projection_dim 32] [--hidden 4096] [--mlp 14336]

The layer has random weights, and runs on random tokens, as many as the sample has. Seconds are those of one processor
(CPU time), in total and for each module; memory is the peak above the loaded model. The error is that of the rows: for
the module `k_proj` the products with the roots are compared with those of the exact roots, from an eigendecomposition
of the whole side in float64, on the vectors of the sample.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.support.command_line import make_parser
from benchmarks.support.passes import make_random_documents
from bergson_core import GradientProcessor
from bergson_core.gradients.gradient_transforms import draw_projections
from bergson_core.gradients.normalizer_fitting import NormalizerFitting
from bergson_core.gradients.normalizers.matrix_root import inverse_root
from bergson_core.gradients.normalizers.moments import KFAC_DAMPING
from bergson_core.gradients.normalizers.normalizers import FactoredNormalizer
from bergson_core.indexing.estimation.cost_meter import resident_bytes
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.hooks import capture, freeze
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.modules import TrackedModule
from bergson_core.tokens.batching import Batch, iter_batches

VOCABULARY: Final = 1024
DOCUMENT_TOKENS: Final = 512
BATCH_TOKENS: Final = 1024
COMPARED: Final = "k_proj"


def make_layer(hidden: int, mlp: int) -> LanguageModel:
    """Returns a Llama of one decoder layer with random weights; the heads are those of Llama 3 8B."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        intermediate_size=mlp,
        max_position_embeddings=DOCUMENT_TOKENS,
    )
    return as_language_model(LlamaForCausalLM(config).eval())


def collect_vectors(
    model: LanguageModel, module: Mapping[str, TrackedModule], batches: list[Batch]
) -> tuple[Tensor, Tensor]:
    """Returns the output gradients [n, o] and the activations [n, i] of a module at the positions that have both."""
    outputs, inputs = [], []

    def keep(_name: str, a: Tensor, g: Tensor) -> None:
        has_gradient = (g != 0).any(-1)
        outputs.append(g[has_gradient])
        inputs.append(a[has_gradient])

    for batch in batches:
        with freeze(model.model), capture(model.model, module, lambda _, a: a, keep):
            forward_backward(model, batch)
    return torch.cat(outputs), torch.cat(inputs)


def relative_error(product: Tensor, exact: Tensor, vectors: Tensor) -> float:
    """Returns how far the products with vectors are from exact ones, relative to these."""
    vectors = vectors.double()
    return float((vectors @ (product - exact).mT).norm() / (vectors @ exact.mT).norm())


def print_errors(
    tracked: TrackedModule,
    processor: GradientProcessor,
    normalizer: FactoredNormalizer,
    sides: tuple[Tensor, Tensor],
) -> None:
    """Prints the errors of both sides of a module."""
    projections = draw_projections(processor, tracked)
    stored = normalizer.fold(*projections)
    for side, projection, kept, vectors in zip(("output", "input"), projections, stored, sides, strict=True):
        moment = vectors.double()
        moment = moment.mT @ moment / len(vectors)
        exact = projection @ inverse_root(moment, KFAC_DAMPING)
        error = relative_error(kept.double(), exact, vectors)
        print(f"{tracked.name}, {side} of {moment.shape[0]:,}: error {error:.1e}", flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of the sample")
    parser.add_argument("--projection_dim", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--mlp", type=int, default=14336)
    options = parser.parse_args()
    model = make_layer(options.hidden, options.mlp)
    modules = model.select_modules(None)
    documents = make_random_documents(options.tokens // DOCUMENT_TOKENS, DOCUMENT_TOKENS, VOCABULARY)
    batches = list(iter_batches(documents, BATCH_TOKENS))
    processor = GradientProcessor(options.projection_dim)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, started = resident_bytes("VmRSS"), time.process_time()
    fitting = NormalizerFitting(model, modules, "kfac")
    for batch in batches:
        fitting.add(batch)
    print(f"passes and sums: {time.process_time() - started:.1f} s for {options.tokens:,} tokens", flush=True)
    for name in fitting.names:
        module_started = time.process_time()
        processor.normalizers[name] = fitting.make(name, draw_projections(processor, modules[name]))
        fitting.forget(name)
        tracked = modules[name]
        shape = f"{tracked.out_features:,} × {tracked.in_features:,}"
        print(f"{name}, {shape}: {time.process_time() - module_started:.1f} s", flush=True)
    seconds, peak = time.process_time() - started, resident_bytes("VmHWM") - before
    kept = sum(
        tensor.nbytes
        for normalizer in processor.normalizers.values()
        for tensor in normalizer.tensors().values()
    )
    whole = sum(4 * (tracked.out_features**2 + tracked.in_features**2) for tracked in modules.values())
    print(f"in all {seconds:.1f} s, peak {peak / 2**30:.2f} GiB above the model")
    print(f"kept {kept / 2**20:.1f} MiB; the whole roots have {whole / 2**30:.2f} GiB", flush=True)
    compared = {name: tracked for name, tracked in modules.items() if name.endswith(COMPARED)}
    ((name, tracked),) = compared.items()
    normalizer = processor.normalizers[name]
    assert isinstance(normalizer, FactoredNormalizer)
    print_errors(tracked, processor, normalizer, collect_vectors(model, compared, batches))


if __name__ == "__main__":
    main()
