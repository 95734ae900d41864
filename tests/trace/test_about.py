"""What a trace says of its model, and of what ran it."""

from __future__ import annotations

import copy
import json
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import circuit_trace as ct
from circuit_trace.record.about import About, _versions, plain
from tests.models import TYPICAL, tokens, wrapped

ITSELF: dict[str, Any] = {}
ITSELF["again"] = ITSELF

PLAIN: dict[str, tuple[Any, Any]] = {
    "plain": ({"a": 1, "b": 2.5, "c": "d", "e": None, "f": True}, None),
    "dtype": ({"dtype": torch.bfloat16}, {"dtype": "torch.bfloat16"}),
    "device": ({"device": torch.device("cuda", 1)}, {"device": "cuda:1"}),
    "numpy": ({"scale": np.float64(0.5), "n": np.int32(3)}, {"scale": 0.5, "n": 3}),
    "not finite": ({"cap": float("inf"), "none": float("nan")}, {"cap": "inf", "none": "nan"}),
    "nested": ({"a": ({"b": (1, 2)},)}, {"a": [{"b": [1, 2]}]}),
    "left out": ({"tokenizer": object(), "of": [1, print, 2], "t": torch.ones(2)}, {"of": [1, 2]}),
    "names": ({1: "a", None: "b"}, {"1": "a", "None": "b"}),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_values(case: str) -> None:
    value, expected = PLAIN[case]
    expected = value if expected is None else expected
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_a_configuration_that_holds_itself() -> None:
    found = About.of(nn.Identity(), ITSELF)
    assert len(json.dumps(found.config)) < 200


@pytest.mark.parametrize("name", TYPICAL)
def test_of_a_trace(name: str) -> None:
    model = wrapped(name)
    found = model.trace(tokens(1)).about
    assert found.model_class == type(model.wrapped_model).__name__
    assert found.model == model.cfg.model_name
    assert found.config["n_heads"] == 4
    assert found.config["dtype"] == "torch.float32"
    assert found.versions == {
        package: version(package) for package in ("circuit-trace", "torch", "transformer-lens")
    }
    assert found.written is None
    assert "n_heads" not in repr(found), "a hundred settings hide the rest"


def test_the_hash_tells_configurations_apart_but_not_devices() -> None:
    cfg = SimpleNamespace(d_model=8, device="cpu", act_fn="gelu")
    hashes = [About.of(nn.Identity(), cfg).config_hash]
    for change in ({"device": "cuda:0"}, {"d_model": 9}, {"act_fn": "relu"}):
        other = copy.copy(cfg)
        other.__dict__.update(change)
        hashes.append(About.of(nn.Identity(), other).config_hash)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert all(len(one) == 16 for one in hashes)


@pytest.mark.parametrize("cfg", [None, {}, {"model_name": 3}, 5])
def test_a_model_without_a_configuration(cfg: Any) -> None:
    found = About.of(nn.Identity(), cfg)
    assert (found.model, found.model_class) == (None, "Identity")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_torch(package: str) -> str:
        if package == "transformer-lens":
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr("circuit_trace.record.about.version", only_torch)
    _versions.cache_clear()
    assert dict(_versions()) == {"circuit-trace": "1.0", "torch": "1.0"}
    _versions.cache_clear()


def test_a_record_made_by_hand_says_nothing() -> None:
    trace = wrapped(TYPICAL[0]).trace(tokens(1))
    assert ct.Trace(trace.graph, trace.current).about == About()
