"""Estimates what a build costs, by a trial build in a process of its own (`trial_build.py`)."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bergson_core.data.documents import load_documents
from bergson_core.errors import InvalidInput, from_code
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Estimate, Progress
from bergson_core.storage.locations import locate_sources
from bergson_core.utils.child_process import command_tied_to_parent, python_module_command
from bergson_core.utils.progress import ProgressCallback
from bergson_core.utils.scratch_directories import scratch_directory

SAMPLE_SIZE: Final = 4096
"""Documents that are read: as many as a shard usually has at most."""


def estimate_build(
    spec: BuildSpec,
    *,
    report: ProgressCallback | None = None,
    sample_size: int = SAMPLE_SIZE,
) -> Estimate:
    """Estimates what building the index that `spec` describes takes on this machine.

    A new process loads the model, reads a sample of the documents, and builds one full-size shard in a temporary
    directory. It runs the model on some of the batches only, and measures memory, files and time. This takes about a
    minute if a batch takes a few seconds.

    Args:
        spec: The build.
        report: Called with the progress. It may raise to stop the estimate.
        sample_size: How many documents to read. They are drawn with the seed of `spec`; all documents are read if there
            are fewer.

    Returns:
        The tokens, the bytes on disk, the peaks of memory and the seconds of the whole build.

    Raises:
        InvalidInput: The build does not fit into memory, or a setting or a document of the sample is invalid.
        ModelNotFound: The model cannot be loaded.
        DatasetNotFound: The dataset cannot be read.
    """
    spec = BuildSpec.model_validate(spec)
    if spec.documents is not None:
        load_documents(
            spec
        )  # The process gets them as JSON, which has a text in place of what JSON cannot hold.
    with scratch_directory() as directory:
        (directory / "spec.json").write_text(locate_sources(spec).model_dump_json())
        event: dict[str, Any] = {}
        with _start_trial(directory, sample_size) as process:
            for line in process.stdout or ():
                event = json.loads(line)
                if "progress" in event and report is not None:
                    report(Progress.model_validate(event["progress"]))
            status = process.wait()
    if "estimate" in event:
        return Estimate.model_validate(event["estimate"])
    if "code" in event:
        raise from_code(event["code"], event["detail"])
    if status == -signal.SIGKILL:
        raise InvalidInput(
            "the build does not fit into memory: its trial was killed. Expected a smaller projection_dim, another "
            "normalizer than kfac or adam, or more memory"
        )
    raise RuntimeError(f"the trial of the build ended with status {status}; its messages say why")


@contextmanager
def _start_trial(directory: Path, sample_size: int) -> Iterator[subprocess.Popen[str]]:
    """Starts the process of the trial, and kills it when the context is left."""
    trial = [
        *python_module_command("bergson_core.indexing.estimation.trial_build"),
        str(directory),
        str(sample_size),
    ]
    process = subprocess.Popen(
        command_tied_to_parent(trial),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the trial
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
