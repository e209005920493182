"""What MAGIC needs to repeat the training of a small model: its new weights, its documents, and its schedule.

MAGIC has a training loop of its own, through which it can differentiate. Optimizer, learning rates, batch size, loss
and clipping are those of the model's training. The order of the documents is not, so that MAGIC explains another run
of the same training, as the retrained models of the linear datamodelling score are.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import AutoModelForCausalLM

from benchmarks.models.cases import Case
from benchmarks.models.small_models import SCHEDULE
from bergson_core.evaluation.training_loop import reproducible
from bergson_core.tokens.tokenization import Tokens


def training_settings(case: Case) -> dict[str, Any]:
    """Returns the settings of the training loop of a case whose model was trained from scratch."""
    steps_per_epoch = -(-len(case.documents) // SCHEDULE.batch_size)
    return {
        "batch_size": SCHEDULE.batch_size,
        "num_epochs": SCHEDULE.steps(len(case.documents)) // steps_per_epoch,
        "lr_schedule": {
            "lr_scheduler_type": "linear",
            "lr": SCHEDULE.learning_rate,
            "warmup_steps": SCHEDULE.warmup,
        },
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": SCHEDULE.weight_decay,
        "max_grad_norm": 1.0,
    }


def save_start(case: Case, directory: Path) -> Path:
    """Writes the new weights that a case's trainer starts from, and returns their directory."""
    with reproducible(0, SCHEDULE.threads):
        model = AutoModelForCausalLM.from_config(cast(Any, case.model.model.config))
    model.save_pretrained(directory)
    cast(Any, case.model.tokenizer).save_pretrained(directory)
    return directory


def closed_documents(case: Case) -> list[Tokens]:
    """Returns the documents with the end-of-text token that training appends to each."""
    end_token = cast(Any, case.model.tokenizer).eos_token_id
    return [
        Tokens(np.append(document.ids, end_token), np.append(document.labels, True))
        for document in case.documents
    ]
