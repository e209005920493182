"""`check_precision` tells a model whose gradients depend on the batch from one whose gradients do not."""

import pytest

from bergson_core.gradients import precision_check
from bergson_core.gradients.precision_check import PrecisionCheck, check_precision, recommend_dtype
from tests import tiny


def test_a_sound_model_has_the_same_gradients_alone_batched_and_padded(tmp_path):
    (check,) = check_precision(str(tiny.save_model(tmp_path)), dtypes=("float32",))
    assert min(check.batched, check.padded, check.precision) == pytest.approx(1, abs=1e-5)


def test_bfloat16_is_compared_with_float32(tmp_path):
    float32, bfloat16 = check_precision(str(tiny.save_model(tmp_path)))
    assert (float32.dtype, bfloat16.dtype) == ("float32", "bfloat16")
    assert 0.9 < bfloat16.precision < float32.precision


def test_a_model_that_sees_its_padding_fails(tmp_path, monkeypatch):
    def load(*arguments):
        model = load_model(*arguments)
        model.model.base_model.register_forward_pre_hook(
            lambda _module, args, kwargs: (args, {**kwargs, "attention_mask": None, "position_ids": None}),
            with_kwargs=True,
        )
        embeddings = model.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda _module, _args, output: output - output.mean(1, keepdim=True))
        return model

    load_model = precision_check.load_model
    monkeypatch.setattr(precision_check, "load_model", load)
    (check,) = check_precision(str(tiny.save_model(tmp_path)), dtypes=("float32",))
    assert check.batched == pytest.approx(1, abs=1e-5)
    assert check.padded < 0.99
    assert recommend_dtype([check]) is None


def test_the_cheapest_precision_that_passed_is_recommended():
    good, bad = (1.0, 1.0, 0.999), (1.0, 0.5, 0.999)
    assert (
        recommend_dtype([PrecisionCheck("float32", *good), PrecisionCheck("bfloat16", *good)]) == "bfloat16"
    )
    assert recommend_dtype([PrecisionCheck("float32", *good), PrecisionCheck("bfloat16", *bad)]) == "float32"
