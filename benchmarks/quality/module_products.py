"""Products of the blocks of documents and queries, module by module: what all scores of one kind of rows are made of.

Legend: m modules, q queries, n documents.

A score sums over modules what the blocks of a query and of a document say, in some normalisation. So a table of the
blocks' inner products and lengths gives the scores of every set of modules, every normalisation and every weighting of
modules, and the rows themselves are collected once and forgotten. Tables are kept in files whose names are digests of
all that they depend on.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bergson_core.schemas.build import Normalize
from bergson_core.search.features import reciprocal_or_zero
from bergson_core.utils.atomic_files import atomic_path

_VERSION: Final = 1
"""Raise it when the code that makes tables changes what it makes."""


@dataclass(frozen=True)
class ModuleProducts:
    """Inner products and lengths of the blocks of one kind of rows.

    Attributes:
        modules: Names of the modules.
        products: Inner products [m, q, n] of the blocks.
        query_squares: Squared lengths [m, q] of the queries' blocks.
        document_squares: Squared lengths [m, n] of the documents' blocks, as they are stored.
        signal: Variance [m] of what the halves of a module's numbers agree on (`module_weights`); zeros where this was
            not estimated.
        noise: The rest of the variance [m] of a module's cosines.
    """

    modules: tuple[str, ...]
    products: Float[Tensor, "m q n"]
    query_squares: Float[Tensor, "m q"]
    document_squares: Float[Tensor, "m n"]
    signal: Float[Tensor, " m"]
    noise: Float[Tensor, " m"]

    def select(self, modules: Iterable[str]) -> "ModuleProducts":
        """Returns the part of the table that belongs to some modules."""
        positions = [self.modules.index(name) for name in modules]
        return ModuleProducts(
            tuple(self.modules[position] for position in positions),
            *(tensor[positions] for tensor in self._tensors().values()),
        )

    def scores(
        self, normalize: Normalize, weights: Float[Tensor, " m"] | None = None
    ) -> Float[Tensor, "q n"]:
        """Returns the score of each document with each query.

        Args:
            normalize: The normalisation, as in `ScoringSpec`. Sign rows have blocks of equal lengths, so that `row`
                divides their scores by the length of the query's row, and `block` by the lengths of its blocks.
            weights: What each module's product is multiplied with; by default 1.
        """
        weights = torch.ones(len(self.modules)) if weights is None else weights.float()
        if normalize == "none":
            return torch.tensordot(weights, self.products, dims=1)
        if normalize == "row":
            query_scales, document_scales = (
                reciprocal_or_zero((weights @ squares).sqrt()[:, None])
                for squares in (self.query_squares, self.document_squares)
            )
            return torch.tensordot(weights, self.products, dims=1) * query_scales * document_scales.mT
        query_scales, document_scales = (
            reciprocal_or_zero(squares.sqrt()) for squares in (self.query_squares, self.document_squares)
        )
        total = torch.zeros(self.products.shape[1:])
        for number, weight in enumerate(weights / weights.sum()):
            total += weight * self.products[number] * query_scales[number, :, None] * document_scales[number]
        return total

    def save(self, path: Path) -> None:
        """Writes the table as a safetensors file, in one step."""
        with atomic_path(path) as temporary:
            tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
            save_file(tensors, temporary, {"modules": json.dumps(self.modules)})

    @classmethod
    def load(cls, path: Path) -> "ModuleProducts":
        """Reads what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return cls(tuple(json.loads(file.metadata()["modules"])), **tensors)

    def _tensors(self) -> dict[str, Tensor]:
        names = ("products", "query_squares", "document_squares", "signal", "noise")
        return {name: getattr(self, name) for name in names}


def block_products(
    names: Sequence[str],
    blocks: Iterable[tuple[Float[Tensor, "q d"], Float[Tensor, "n d"]]],
) -> ModuleProducts:
    """Returns the table of pairs of a module's blocks: those of the queries, and those of the documents."""
    rows = [
        (queries @ documents.mT, queries.square().sum(1), documents.square().sum(1))
        for queries, documents in blocks
    ]
    products, query_squares, document_squares = map(torch.stack, zip(*rows, strict=True))
    signal, noise = torch.zeros(len(names)), torch.zeros(len(names))
    return ModuleProducts(tuple(names), products, query_squares, document_squares, signal, noise)


def join(parts: Iterable[ModuleProducts]) -> ModuleProducts:
    """Returns a table of the modules of several tables, such as some with rows of another size."""
    parts = list(parts)
    tensors = ([part._tensors()[name] for part in parts] for name in parts[0]._tensors())
    return ModuleProducts(sum((part.modules for part in parts), ()), *map(torch.cat, tensors))


def cached_products(
    directory: Path, inputs: Any, kinds: Sequence[str], make: Callable[[], dict[str, ModuleProducts]]
) -> dict[str, ModuleProducts]:
    """Returns tables by kind, which are computed unless all of them are in files.

    Args:
        directory: Directory of the files; it is made if it does not exist.
        inputs: All that the tables depend on except their kind and the versions of libraries, as JSON.
        kinds: The kinds of tables that `make` returns.
        make: Computes the tables.
    """
    directory.mkdir(parents=True, exist_ok=True)
    digests = {
        kind: hashlib.sha256(json.dumps([_VERSION, inputs, kind], sort_keys=True).encode()).hexdigest()
        for kind in kinds
    }
    paths = {kind: directory / f"{digest}.safetensors" for kind, digest in digests.items()}
    if not all(path.is_file() for path in paths.values()):
        for kind, table in make().items():
            table.save(paths[kind])
    return {kind: ModuleProducts.load(path) for kind, path in paths.items()}
