"""Stands for the command line of EleutherAI's bergson: reads a configuration and writes scores as it does.

The score of a document with a query is the product of the sums of their labelled tokens. Of MAGIC it is its negative.
"""

import json
import sys
from pathlib import Path

import numpy as np


def sums_of_labels(dataset: str) -> list[int]:
    rows = [json.loads(line) for line in Path(dataset).read_text().splitlines()]
    assert all(row["length"] == len(row["input_ids"]) == len(row["labels"]) for row in rows)
    return [sum(label for label in row["labels"] if label != -100) for row in rows]


def find_setting(settings: object, name: str) -> dict[str, str] | None:
    if not isinstance(settings, dict):
        return None
    inner = (find_setting(value, name) for value in settings.values())
    return settings[name] if name in settings else next((value for value in inner if value), None)


((command, settings),) = json.loads(Path(sys.argv[1]).read_text())["steps"][-1].items()
data, query = (find_setting(settings, name) for name in ("data", "query"))
assert data is not None and query is not None
documents, queries = sums_of_labels(data["dataset"]), sums_of_labels(query["dataset"])
directory = Path("run/scores")
directory.mkdir(parents=True)
names = [f"{kind}_{number}" for number in range(len(queries)) for kind in ("score", "written")]
dtype = {
    "names": names,
    "formats": ["float32", "bool"] * len(queries),
    "offsets": [8 * (k // 2) + 4 * (k % 2) for k in range(len(names))],
    "itemsize": 8 * len(queries),
}
rows = np.zeros(len(documents), dtype=np.dtype(dtype))
for number, query_sum in enumerate(queries):
    rows[f"score_{number}"] = np.array(documents) * query_sum * (-1 if command == "magic" else 1)
    rows[f"written_{number}"] = True
if command == "ekfac":
    rows["written_0"][-1] = False
rows.tofile(directory / "scores.bin")
info = {"num_rows": len(documents), "num_scores": len(queries), "dtype": dtype}
(directory / "info.json").write_text(json.dumps(info))
Path("run/query").mkdir()
Path("run/query/info.json").write_text(json.dumps({"grad_sizes": {"h.0.attn.c_attn": 3, "h.0.mlp.c_fc": 4}}))
