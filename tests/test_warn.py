"""A warning points at the user's line, however deep in the library its reason was found."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import circuit_trace as ct
from circuit_trace.warn import warn

DEEP = """
from contextlib import contextmanager
import torch
from circuit_trace.warn import warn

def call():
    warn("not as it seems", MaskWarning)

@contextmanager
def opened():
    call()
    yield

class Model(torch.nn.Module):
    def forward(self):
        with opened():
            pass
"""


def inside_the_library(module: str = "circuit_trace.some.room") -> dict[str, Any]:
    names = {"__name__": module, "MaskWarning": ct.MaskWarning}
    exec(compile(DEEP, "room.py", "exec"), names)
    return names


def enter(context: Any) -> None:
    with context:
        pass


@pytest.mark.parametrize("how", ["call", "opened", "Model"])
def test_it_points_at_the_call_from_outside(how: str) -> None:
    room = inside_the_library()
    calls = {
        "call": room["call"],
        "opened": lambda: enter(room["opened"]()),
        "Model": lambda: room["Model"]()(),
    }
    with pytest.warns(ct.MaskWarning, match=r"^not as it seems$") as caught:
        calls[how]()
    assert [one.filename for one in caught] == [__file__]


def test_it_points_no_further_than_that() -> None:
    room = inside_the_library("circuit_tracer.somebody")
    with pytest.warns(ct.MaskWarning) as caught:
        room["call"]()
    assert [one.filename for one in caught] == ["room.py"]


def test_it_can_be_switched_off_and_made_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ct.MaskWarning)
        warn("unheard", ct.MaskWarning)
        with pytest.raises(ct.EdgeWarning, match="heard"):
            warn("heard", ct.EdgeWarning)
