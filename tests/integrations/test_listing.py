"""The shortest text of a score gives its bits back; facts are read from text whatever it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuit_trace.integrations.listing import facts_in, score_text


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_single_precision(score: float) -> None:
    assert np.float32(float(score_text(score, "float32"))) == np.float32(score)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_double_precision(score: float) -> None:
    assert float(score_text(score, "float64")) == score


@pytest.mark.parametrize(
    ("score", "dtype", "text"),
    [
        (float(np.float32(0.1)), "float32", "0.1"),
        (float(np.float32(0.1)), "float64", "0.10000000149011612"),
        (-2.0, "float32", "-2.0"),
        (float(np.float32(1e-45)), "float32", "1e-45"),
    ],
)
def test_texts(score: float, dtype: str, text: str) -> None:
    assert score_text(score, dtype) == text


def test_facts() -> None:
    given_text = {"n_layers": "2", "parallel": '"true"', "attn_only": "False", "seq_len": "9" * 10}
    assert facts_in({**given_text, "dtype": "float32", "rankdir": "LR"}) == {
        "n_layers": 2,
        "parallel": True,
        "attn_only": False,
        "seq_len": "9" * 10,
        "dtype": "float32",
    }
    assert facts_in({"n_heads": "٣"}) == {"n_heads": "٣"}, "other scripts' digits are no number"
