"""Peak memory of builds of more and more short documents, each in a process of its own.

    python -m benchmarks.memory [--documents 20000 80000 320000] [--openings mapped streaming] [--rows float16]

A GPT-NeoX of 80,000 parameters, documents of two sentences, p = 16: 2,048 numbers a row. `mapped` is a jsonl file as
the datasets library opens it, `streaming` the same file as a stream. Resident is the peak over the whole life of the
process (VmHWM), imports and mapped pages of files included; anonymous is the most that was not a file's (RssAnon),
looked at 100 times a second. The allocator is told to give large blocks back at once: left alone it keeps some
150 MiB of them, more or fewer in each run.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path

from bergson_core import build_index
from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.indexing.cost_meter import resident_bytes
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec, GradientSpec
from bergson_core.storage.manifest import read_manifest


def make_sources(root: Path, documents: int) -> Path:
    """`documents` pairs of sentences of the fact corpus, under ids of their own."""
    texts = [document.text for document in make_corpus(people=400, seed=0).documents]
    path = root / f"documents-{documents}.jsonl"
    with path.open("w") as file:
        for k in range(documents):
            text = f"{texts[k % len(texts)]} {texts[(k // len(texts) + 7 * k) % len(texts)]}"
            file.write(json.dumps({"id": f"doc-{k}", "text": text}) + "\n")
    return path


def make_model(root: Path) -> Path:
    """A GPT-NeoX of two layers with a tokenizer of the corpus."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from bergson_core.demo.train import fit_tokenizer

    bpe = fit_tokenizer([document.text for document in make_corpus(people=50, seed=0).documents], 1000)
    config = GPTNeoXConfig(
        vocab_size=len(bpe.get_vocab()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    GPTNeoXForCausalLM(config).save_pretrained(root / "model")
    bpe.save_pretrained(root / "model")
    return root / "model"


def build(spec: BuildSpec, output: Path) -> None:
    """Builds, and writes what was measured beside the index: bytes and seconds."""
    over, anonymous = threading.Event(), [0]

    def look() -> None:
        while not over.wait(0.01):
            anonymous[0] = max(anonymous[0], resident_bytes("RssAnon"))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    began = time.perf_counter()
    build_index(spec, output)
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    measured = {"resident": resident_bytes("VmHWM"), "anonymous": anonymous[0], "seconds": seconds}
    output.with_suffix(".json").write_text(json.dumps(measured))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    openings = ("mapped", "streaming")
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000, 80_000, 320_000])
    parser.add_argument("--openings", nargs="+", choices=openings, default=openings)
    parser.add_argument("--rows", default="float16")
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        # Of the processes that are started. The second is glibc's.
        os.environ |= {"HF_DATASETS_CACHE": str(root / "cache"), "MALLOC_MMAP_THRESHOLD_": str(2**16)}
        model = make_model(root)
        for opening in options.openings:
            first = 0
            for documents in options.documents:
                path = make_sources(root, documents)
                spec = BuildSpec(
                    model=str(model),
                    dataset=DatasetSpec(path=str(path), streaming=opening == "streaming"),
                    columns=ColumnsSpec(id="id"),
                    gradients=GradientSpec(rows=options.rows),
                )
                output = root / f"{opening}-{documents}"
                process = processes.Process(target=build, args=(spec, output))
                process.start()
                process.join()
                found = json.loads(output.with_suffix(".json").read_text())
                manifest, first = read_manifest(output), first or found["resident"]
                print(
                    f"{opening:<10}{documents:>9,} documents  resident {found['resident'] / 2**20:>6,.0f} MiB"
                    f"  {found['resident'] / first:.3f}  anonymous {found['anonymous'] / 2**20:>6,.0f} MiB"
                    f"  {documents / found['seconds']:>6,.0f} documents/s"
                    f"  index {manifest.total_bytes() / 2**20:>6,.0f} MiB, {manifest.search.kind}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
