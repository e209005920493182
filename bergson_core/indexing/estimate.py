"""What a build would cost, measured by a trial of it (`trial`) in a process of its own. No torch here."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bergson_core.errors import InvalidInput, from_code
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Estimate, Progress

SAMPLE_SIZE: Final = 4096
"""Documents that are looked at: as many as a shard has at most."""


def estimate_build(
    spec: BuildSpec,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    sample_size: int = SAMPLE_SIZE,
) -> Estimate:
    """What building the index that `spec` describes would take on this machine.

    A new process loads the model and reads `sample_size` documents, drawn by the spec's seed, or all where they are
    fewer. It builds one shard of the build's own size in a temporary directory, in which the model runs on some batches
    only, and measures memory, files and time on the way: about a minute where a batch takes some seconds. `report` is
    called with its progress and may raise to stop it.
    Raises what `build_index` would for a bad model or dataset, or for a document that was looked at, and `InvalidInput`
    where the build does not fit into memory.
    """
    with tempfile.TemporaryDirectory(prefix="bergson-") as directory:
        (Path(directory) / "spec.json").write_text(spec.model_dump_json())
        last: dict[str, Any] = {}
        with _trial(directory, sample_size) as process:
            for line in process.stdout or ():
                last = json.loads(line)
                if "progress" in last:
                    report(Progress.model_validate(last["progress"]))
            status = process.wait()
    if "estimate" in last:
        return Estimate.model_validate(last["estimate"])
    if "code" in last:
        raise from_code(last["code"], last["detail"])
    if status == -signal.SIGKILL:
        raise InvalidInput(
            "the build does not fit into memory: its trial was killed. Expected a smaller projection_dim, another "
            "normalizer than kfac or adam, or more memory"
        )
    raise RuntimeError(f"the trial of the build ended with status {status}; its messages say why")


@contextmanager
def _trial(directory: str, sample_size: int) -> Iterator[subprocess.Popen[str]]:
    """The process, which is gone when the context is left."""
    process = subprocess.Popen(
        [sys.executable, "-Pm", "bergson_core.indexing.trial_build", directory, str(sample_size)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which ends it
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
