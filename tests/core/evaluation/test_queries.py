"""Evaluation queries are read from a dataset."""

import pytest
from datasets import Dataset

from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.evaluation.queries import read_queries


def test_queries_are_read_with_or_without_ids_and_gold_values():
    dataset = Dataset.from_dict({"prompt": ["a", "b"], "completion": [" c", " d"]})
    assert [(query.id, query.gold) for query in read_queries(dataset, "fact")] == [("0", ""), ("1", "")]
    with pytest.raises(ColumnNotFound, match="no column 'completion'"):
        read_queries(dataset.remove_columns("completion"), "fact")
    with pytest.raises(InvalidInput, match="same id"):
        read_queries(dataset.add_column("id", ["x", "x"]), "fact")
    with pytest.raises(InvalidInput, match="query 1: expected a prompt"):
        read_queries(Dataset.from_dict({"prompt": ["a", None], "completion": [" c", " d"]}), "fact")
