"""Peak memory of a build at n and 4 n documents, each in a process of its own.

    python -m benchmarks.memory [--documents 5000] [--factor 4]

Peak RSS is the operating system's figure for the whole life of the process (ru_maxrss), imports included. It
counts mapped pages of files too.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
from pathlib import Path

from bergson_core import build_index
from bergson_core.facts import make_corpus
from bergson_core.manifest import read_manifest
from bergson_core.specs import BuildSpec, ColumnsSpec, DatasetSpec


def make_sources(root: Path, documents: int) -> Path:
    """`documents` short documents, cut from or repeated out of the fact corpus, under new ids."""
    texts = [document.text for document in make_corpus(people=400, seed=0).documents]
    path = root / f"documents-{documents}.jsonl"
    with path.open("w") as file:
        for k in range(documents):
            file.write(json.dumps({"id": f"doc-{k}", "text": texts[k % len(texts)]}) + "\n")
    return path


def make_model(root: Path) -> Path:
    """A GPT-NeoX of about a million parameters with a tokenizer of the corpus."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from bergson_core.demo_training import fit_tokenizer

    bpe = fit_tokenizer([document.text for document in make_corpus(people=50, seed=0).documents], 2000)
    config = GPTNeoXConfig(
        vocab_size=len(bpe.get_vocab()),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=128,
    )
    GPTNeoXForCausalLM(config).save_pretrained(root / "model")
    bpe.save_pretrained(root / "model")
    return root / "model"


def build(model: Path, documents: Path, output: Path) -> None:
    """Builds, and writes the peak RSS in bytes beside the index."""
    spec = BuildSpec(model=str(model), dataset=DatasetSpec(path=str(documents)), columns=ColumnsSpec(id="id"))
    build_index(spec, output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    output.with_suffix(".peak").write_text(str(peak))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--factor", type=int, default=4)
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model, peaks = make_model(root), {}
        for documents in (options.documents, options.documents * options.factor):
            output = root / f"index-{documents}"
            process = processes.Process(target=build, args=(model, make_sources(root, documents), output))
            process.start()
            process.join()
            peaks[documents] = int(output.with_suffix(".peak").read_text())
            size = read_manifest(output).total_bytes() / 2**20
            print(
                f"{documents:>8,} documents: peak {peaks[documents] / 2**20:,.0f} MiB, index {size:,.0f} MiB"
            )
        few, many = peaks.values()
        print(f"ratio {many / few:.3f}")


if __name__ == "__main__":
    main()
