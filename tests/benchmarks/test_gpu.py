"""The script for machines with a GPU runs on a CPU, and says which part has failed."""

from collections.abc import Iterator

from benchmarks import gpu


def test_all_parts_run_on_a_cpu() -> None:
    parts = {
        "rows": lambda: gpu.check_rows("cpu", gpu.SMALL),
        "index": lambda: gpu.check_index("cpu"),
        "throughput": lambda: gpu.measure_throughput("cpu", gpu.SMALL),
        "query": lambda: gpu.measure_query("cpu", gpu.SMALL),
    }
    lines, failed = gpu.run_parts(parts)
    assert not failed, "\n".join(lines)
    text = "\n".join(lines)
    assert "| bare pass |" in text and "| kfac, sign, p = 32 |" in text
    assert "5 of 5 results are the CPU's" in text


def test_a_part_that_fails_is_named_and_the_others_are_run() -> None:
    def fail() -> Iterator[str]:
        yield "begun"
        gpu.require(False, "rows differ")

    lines, failed = gpu.run_parts({"first": fail, "second": lambda: iter(["done"])})
    assert failed == ["first"]
    assert any("AssertionError: rows differ" in line for line in lines) and "done" in lines
