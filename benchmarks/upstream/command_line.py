"""Starts the command line of EleutherAI's bergson, by the Python of its environment.

One thing is mended: ASTRA and conjugate gradients change numbers in place that, on a CPU, still lie in a file that is
open for reading alone, and the process dies of it. They get a copy.
"""

from bergson.__main__ import main  # pyright: ignore[reportMissingImports]
from bergson.hessians import astra  # pyright: ignore[reportMissingImports]

as_tensor = astra.numpy_to_tensor
astra.numpy_to_tensor = lambda array: as_tensor(array.copy())

if __name__ == "__main__":
    main()
