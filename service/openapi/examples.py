"""The examples of the OpenAPI document. They tell one story, from the build of the index `facts` to its answers."""

from typing import Any

JOB_ID = "0199c2f4e8a07d3a"
REQUEST_ID = "5f0c9a52c1de4c1f8f0b3f6f5b7d2a10"

INDEX_REQUEST: dict[str, Any] = {
    "name": "facts",
    "model": "EleutherAI/pythia-160m",
    "revision": None,
    "dataset": {"path": "NeelNanda/pile-10k", "split": "train", "subset": None, "streaming": False},
    "documents": None,
    "columns": {"prompt": "text", "completion": None, "messages": None, "id": None, "metadata": ["source"]},
    "gradients": {
        "projection_dim": 16,
        "normalizer": "adafactor",
        "rows": "float16",
        "optimizer_state": None,
        "modules": None,
        "include_bias": False,
        "split_heads": False,
        "max_tokens": None,
        "seed": 0,
    },
    "scoring": {"normalize": "row", "preconditioner": True, "damping": 0.1},
    "search": {"kind": "auto", "min_recall": 0.99},
}
INDEX_PRESET: dict[str, Any] = {
    "name": "facts",
    "model": "EleutherAI/pythia-160m",
    "dataset": {"path": "NeelNanda/pile-10k"},
    "preset": "best",
    "gradients": {"projection_dim": 32},
}
INDEX_CHECKPOINTS: dict[str, Any] = {
    "name": "run",
    "models": [f"EleutherAI/pythia-160m@{revision}" for revision in ("step1000", "step16000", "step143000")],
    "dataset": {"path": "NeelNanda/pile-10k"},
}
INDEX_INLINE: dict[str, Any] = {
    "name": "facts",
    "model": "EleutherAI/pythia-160m",
    "documents": [
        {"id": "doc-17", "text": "Ada Lovelace's birthplace is London", "source": "wiki"},
        {"id": "doc-18", "text": "Alan Turing was born in Maida Vale", "source": "wiki"},
    ],
    "columns": {"id": "id", "metadata": ["source"]},
}
INDEX_PAIRS: dict[str, Any] = {
    "name": "preferences",
    "model": "HuggingFaceH4/zephyr-7b-beta",
    "dataset": {"path": "trl-lib/ultrafeedback_binarized"},
    "columns": {"chosen": "chosen", "rejected": "rejected"},
    "gradients": {"preference_beta": 0.1},
    "reference_model": "HuggingFaceH4/mistral-7b-sft-beta",
}
JOB_ACCEPTED: dict[str, Any] = {"job_id": JOB_ID, "index": "facts", "state": "queued"}
INDEX_SUMMARY: dict[str, Any] = {
    "name": "facts",
    "state": "ready",
    "job_id": None,
    "error": None,
    "generation": 1,
    "created_at": "2026-03-01T12:00:00+00:00",
    "model": "EleutherAI/pythia-160m",
    "rows": 10000,
    "tokens": 6120344,
    "modules": 48,
    "dimensions": 12288,
    "coverage_percent": 52.3,
    "size_bytes": {"rows": 251658240, "search": 12582912, "statistics": 1048576, "total": 265289728},
}
INDEX_DETAIL: dict[str, Any] = INDEX_SUMMARY | {
    "spec": {key: value for key, value in INDEX_REQUEST.items() if key != "name"},
    "fingerprint": "3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b",
    "model_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "profiles": ["default"],
    "taken_down": 0,
    "compacted": 0,
    "search": {
        "kind": "float16",
        "candidates": 40,
        "recall_at_10": 1.0,
        "opponents_recall_at_10": 1.0,
        "queries": 64,
        "rows": 10000,
    },
    "notice": {"threshold": 3.9, "false_alarms": 0.05, "queries": 256},
}
ESTIMATE: dict[str, Any] = {
    "documents": 10000,
    "looked_at": 4096,
    "tokens": 6_100_000,
    "modules": 48,
    "dimensions": 12288,
    "coverage_percent": 52.3,
    "search": "float16",
    "size_bytes": {
        "rows": 270_000_000,
        "search": 246_000_000,
        "statistics": 26_000_000,
        "total": 542_000_000,
    },
    "peak_disk_bytes": 580_000_000,
    "peak_memory_bytes": 3_400_000_000,
    "peak_device_bytes": None,
    "seconds": 410.0,
}
APPEND_INLINE: dict[str, Any] = {
    "documents": [{"id": "doc-19", "text": "Grace Hopper's birthplace is New York", "source": "wiki"}]
}
APPEND_DATASET: dict[str, Any] = {
    "model": "EleutherAI/pythia-160m",
    "dataset": {"path": "NeelNanda/wiki-10k", "split": "train", "subset": None},
}
PROFILE_INLINE: dict[str, Any] = {
    "name": "birthplaces",
    "queries": [
        {"prompt": "Ada Lovelace was born in", "completion": " London"},
        {"prompt": "Alan Turing was born in", "completion": " Maida Vale"},
    ],
    "mixing": 0.9,
}
PROFILE_DATASET: dict[str, Any] = {"name": "law", "dataset": {"path": "legal/questions"}, "mixing": None}
DOCUMENT: dict[str, Any] = {
    "index": "facts",
    "id": "doc-17",
    "prompt": "Ada Lovelace's birthplace is London",
    "completion": None,
    "metadata": {"source": "wiki"},
    "loss": 3.4,
    "n_tokens": 8,
}
INDEX_BUILDING: dict[str, Any] = dict.fromkeys(INDEX_SUMMARY) | {
    "name": "news",
    "state": "building",
    "job_id": JOB_ID,
}
INDEX_PAGE: dict[str, Any] = {"items": [INDEX_SUMMARY, INDEX_BUILDING], "next_cursor": None}

JOB: dict[str, Any] = {
    "job_id": JOB_ID,
    "kind": "build",
    "index": "facts",
    "state": "running",
    "progress": {
        "stage": "gradients",
        "done": 4200,
        "total": 10000,
        "unit": "documents",
        "tokens_per_s": 35210.5,
        "eta_s": 74.0,
    },
    "error": None,
    "created_at": 1772366400.0,
    "started_at": 1772366401.2,
    "finished_at": None,
    "deliveries": 1,
}
JOB_CANCELLED: dict[str, Any] = JOB | {"state": "cancelled", "finished_at": 1772366460.0}
JOB_PAGE: dict[str, Any] = {"items": [JOB], "next_cursor": None}

UNLEARN_IDS: dict[str, Any] = {
    "ids": ["doc-17", "doc-40"],
    "queries": [{"prompt": "Ada Lovelace was born in", "completion": " London"}],
    "control": [{"prompt": "Water boils at", "completion": " 100 degrees"}],
}
UNLEARN_FILTER: dict[str, Any] = {
    "filter": {"source": ["wiki"], "year": {"gte": 1990}},
    "queries": [{"prompt": "Ada Lovelace was born in", "completion": " London", "instead_of": " Paris"}],
}
JOB_UNLEARNED: dict[str, Any] = JOB | {
    "kind": "unlearn",
    "state": "succeeded",
    "progress": {
        "stage": "measure",
        "done": 4,
        "total": 4,
        "unit": "texts",
        "tokens_per_s": 0.0,
        "eta_s": 0.0,
    },
    "unlearning": {
        "generation": 1,
        "documents": 2,
        "left_out": 0,
        "learning_rate": 0.00012,
        "own_log_probability": -9.1,
        "queries": [{"before": -0.12, "after": -3.05, "log_probability": -2.93, "probability": -0.84}],
        "control": [{"before": -0.31, "after": -0.33, "log_probability": -0.02, "probability": -0.01}],
        "mean": -2.93,
        "control_mean": -0.02,
    },
    "finished_at": 1772366403.0,
}

ATTRIBUTE_REQUEST: dict[str, Any] = {
    "index": "facts",
    "prompt": "Ada Lovelace was born in",
    "completion": " London",
    "top_k": 10,
    "direction": "proponents",
    "include": ["text", "metadata"],
    "timeout_s": 30,
}
ATTRIBUTE_BOTH: dict[str, Any] = ATTRIBUTE_REQUEST | {"top_k": 5, "direction": "both", "include": ["text"]}
ATTRIBUTE_FILTERED: dict[str, Any] = ATTRIBUTE_REQUEST | {
    "filter": {"source": ["wiki", "books"], "year": {"gte": 1990, "lt": 2000}}
}
ATTRIBUTE_EXCLUDING: dict[str, Any] = ATTRIBUTE_REQUEST | {
    "filter": {"source": {"ne": "wiki", "exists": True}, "year": {"gte": 1990, "not_in": [1993, 1995]}}
}
ATTRIBUTE_CONTRAST: dict[str, Any] = ATTRIBUTE_REQUEST | {"instead_of": " Paris", "direction": "both"}
ATTRIBUTE_BETWEEN: dict[str, Any] = ATTRIBUTE_REQUEST | {"index": "run", "between": [0, -1]}
ATTRIBUTE_LOG_ODDS: dict[str, Any] = ATTRIBUTE_REQUEST | {"objective": "log_odds"}
ATTRIBUTE_RESCORED: dict[str, Any] = ATTRIBUTE_REQUEST | {"rescore": 200}
ATTRIBUTE_WORDS: dict[str, Any] = ATTRIBUTE_REQUEST | {"include": ["text", "words"]}
ATTRIBUTE_FUSED: dict[str, Any] = ATTRIBUTE_REQUEST | {"order": "fused"}
ATTRIBUTE_VERIFIED: dict[str, Any] = {
    "index": "facts",
    "prompt": "Ada Lovelace was born in",
    "completion": " London",
    "verify": {"top": 3, "controls": 3},
}
ATTRIBUTE_TOGETHER: dict[str, Any] = ATTRIBUTE_VERIFIED | {
    "verify": {"top": 3, "controls": 3, "together": True}
}
ATTRIBUTE_GROUPED: dict[str, Any] = {
    "index": "facts",
    "prompt": "Ada Lovelace was born in",
    "completion": " London",
    "top_k": 5,
    "group_by": "near_duplicates",
}
ATTRIBUTE_RESPONSE: dict[str, Any] = {
    "index": "facts",
    "generation": 1,
    "profile": "default",
    "request_id": REQUEST_ID,
    "query": {
        "prompt": "Ada Lovelace was born in",
        "completion": " London",
        "generated": False,
        "token_ids": None,
        "loss": 0.12,
        "n_tokens": 1,
        "losses_between": None,
        "instead_of": None,
        "instead_of_loss": None,
    },
    "results": [
        {
            "rank": 1,
            "id": "doc-17",
            "score": 0.83,
            "exact": False,
            "interval": [0.77, 0.89],
            "strength": "strong",
            "percentile": 99.98,
            "prompt": "Ada Lovelace's birthplace is London",
            "completion": None,
            "metadata": {"source": "wiki"},
            "loss": 3.4,
            "modules": None,
            "tokens": None,
            "words": None,
            "verified": None,
        }
    ],
    "opponents": None,
    "notice": None,
    "background": None,
    "warnings": [],
    "rescored": None,
    "verification": None,
    "partial": False,
    "timing_ms": {
        "queue": 0.8,
        "gradient": 11.2,
        "search": 1.9,
        "rescore": 0.0,
        "words": 0.0,
        "verify": 0.0,
        "total": 14.6,
    },
}
VERIFIED_RESPONSE: dict[str, Any] = ATTRIBUTE_RESPONSE | {
    "results": [
        ATTRIBUTE_RESPONSE["results"][0]
        | {"verified": {"log_probability": -2.31, "probability": -0.8, "own_log_probability": -4.6}}
    ],
    "verification": {
        "learning_rate": 0.00012,
        "log_probability": -0.12,
        "controls": [
            {"id": "doc-402", "log_probability": -0.03, "probability": -0.03, "own_log_probability": -3.9}
        ],
        "mean": {"log_probability": -0.03, "probability": -0.03, "own_log_probability": -3.9},
        "together": None,
        "opponents_together": None,
    },
    "timing_ms": {
        "queue": 0.8,
        "gradient": 11.2,
        "search": 1.9,
        "rescore": 0.0,
        "words": 0.0,
        "verify": 310.0,
        "total": 323.9,
    },
}
ATTRIBUTE_BACKGROUND: dict[str, Any] = ATTRIBUTE_REQUEST | {"include": ["text", "background"]}
BACKGROUND_RESPONSE: dict[str, Any] = ATTRIBUTE_RESPONSE | {
    "background": {"edges": [-0.12, -0.04, 0.04, 0.12, 0.2], "counts": [290, 3460, 338, 8]},
}
WORDS_RESPONSE: dict[str, Any] = ATTRIBUTE_RESPONSE | {
    "results": [
        ATTRIBUTE_RESPONSE["results"][0] | {"words": {"rank": 3, "score": 11.4, "states": True}},
    ],
    "timing_ms": ATTRIBUTE_RESPONSE["timing_ms"] | {"words": 2.1, "total": 16.7},
}

ATTRIBUTE_GENERATED: dict[str, Any] = {
    "index": "facts",
    "prompt": "Ada Lovelace was born in",
    "completion": None,
    "max_new_tokens": 16,
}
ATTRIBUTE_PARTS: dict[str, Any] = ATTRIBUTE_REQUEST | {
    "top_k": 3,
    "include": ["text", "tokens", "modules"],
}
ATTRIBUTE_SPAN: dict[str, Any] = {
    "index": "facts",
    "prompt": "Ada Lovelace",
    "completion": " was born in London in 1815",
    "span": [12, 19],
}
ATTRIBUTE_JOIN: dict[str, Any] = {
    "index": "facts",
    "prompt": "Ada Lovelace was born in",
    "completion": "London",
    "join": "space",
}
ATTRIBUTE_CHAT: dict[str, Any] = {
    "index": "facts",
    "messages": [
        {"role": "user", "content": "Where was Ada Lovelace born?"},
        {"role": "assistant", "content": "In London."},
    ],
}
BATCH_REQUEST: dict[str, Any] = {
    "queries": [
        {"index": "facts", "prompt": "Ada Lovelace was born in", "completion": " London", "top_k": 1},
        {"index": "facts", "prompt": "Alan Turing was born in", "completion": " Maida Vale", "top_k": 1},
    ],
    "timeout_s": 60,
}
SIDE_BY_SIDE_REQUEST: dict[str, Any] = {
    "indexes": ["facts", "people"],
    "prompt": "Ada Lovelace was born in",
    "completion": " London",
    "top_k": 3,
}
BATCH_RESPONSE: dict[str, Any] = {
    "results": [
        ATTRIBUTE_RESPONSE,
        {
            "type": "urn:bergson:problem:too_long",
            "title": "Too long for the model",
            "status": 422,
            "detail": "expected at most 2048 tokens, got 3120: shorten the prompt",
            "code": "too_long",
            "request_id": REQUEST_ID,
        },
    ]
}

MODEL: dict[str, Any] = {
    "model": "EleutherAI/pythia-160m",
    "revision": None,
    "dtype": "float32",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "parameters": 162322944,
}
MODELS: dict[str, Any] = {"items": [MODEL | {"workers": ["w-7c1f"], "indexes": ["facts"]}]}
WORKERS: dict[str, Any] = {
    "items": [
        {
            "worker_id": "w-7c1f",
            "pid": 4242,
            "host": "gpu-1",
            "device": "cuda:0",
            "started_at": 1772366000.0,
            "state": "idle",
            "resident": ["facts"],
            "models": [MODEL | {"indexes": ["facts"]}],
            "memory_bytes": 1_400_000_000,
        }
    ]
}
LIVE: dict[str, Any] = {"status": "ok"}
KEY_PERMISSIONS: dict[str, Any] = {
    "name": "ada",
    "scope": "read",
    "indexes": ["facts-*"],
    "text": True,
    "rate": "100/minute",
    "concurrent": 4,
    "expires_at": 1_780_142_400.0,
}
READY: dict[str, Any] = {"status": "ready", "workers": 1}
