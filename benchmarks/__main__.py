"""Runs the benchmarks one after the other: `python -m benchmarks [NAME ...]`.

Each of them runs with its defaults, in a process of its own, from a fresh clone: it makes its own data. All together
take about an hour on two CPU cores. A benchmark that fails does not stop the others, but the exit status is then 1.
What choices of rows and scores are worth is measured by `python -m benchmarks.quality` instead, and what the notice is
worth by `python -m benchmarks.notice_accuracy`.
"""

import subprocess
import sys

from benchmarks.support.command_line import make_parser, parse_with_names

BENCHMARKS = {
    "gradient_throughput": "tokens a second of gradient collection, compared with passes without hooks",
    "gradient_memory": "peak memory of gradient collection, compared with plain passes",
    "logits_throughput": "tokens a second with the logits of labelled positions only",
    "build_memory": "peak memory of builds of more and more documents",
    "estimate_accuracy": "estimates of builds, compared with the builds",
    "index_updates": "seconds of an append, a takedown and a compaction",
    "ray_scaling": "documents a second with one and two Ray workers",
    "large_index_search": "time, memory and recall of queries of a large index",
    "ivf_recall": "recall and time of IVF, which was tried beside the flat search",
    "whitening": "memory, time and error of fitting K-FAC for a layer of Llama 3 8B",
    "word_index": "time, memory and disk of the words of a corpus, and time of ranking by them",
    "codec_error": "errors of scores from float16 and int8 rows",
    "exact_scores": "milliseconds to rescore a candidate by its whole gradient, and what that changes",
    "query_parts": "milliseconds of the parts of a query, compared with its bare gradient",
    "explorer_page": "first paint of the explorer, and the longest task while an answer is scrolled",
    "http_overhead": "milliseconds that the service adds to a query",
    "service_load": "answers a second and latencies of the service under load",
    "job_share": "latencies of queries beside a build, for several shares of a worker's time",
}


def main() -> None:
    """Runs the chosen benchmarks, or all."""
    listed = "\n".join(f"    {name:<22}{purpose}" for name, purpose in BENCHMARKS.items())
    parser = make_parser(f"{__doc__}\n{listed}")
    options = parse_with_names(parser, BENCHMARKS, "benchmark")
    failed = []
    for name in options.names:
        print(f"== benchmarks.{name}: {BENCHMARKS[name]}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode != 0:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
