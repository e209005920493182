"""Scripts that measure speed, memory and quality; `python -m benchmarks` runs all of them."""

from bergson_core.utils.progress import silence_libraries

silence_libraries()
