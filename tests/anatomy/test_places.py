"""Whether the modules that an anatomy names are where they were."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from circuit_trace.anatomy import Anatomy, Places
from tests.anatomy.toy import ToyModel, anatomy


def found() -> tuple[ToyModel, Anatomy]:
    model = ToyModel()
    described = anatomy(model)
    assert described is not None
    return model, described


def test_every_point_is_looked_after() -> None:
    model, described = found()
    places = Places.of(model, described)
    for name, module in list(model.named_modules()):
        if not any(point.module is module for point in described.points()):
            continue
        above, _, last = name.rpartition(".")
        holder = model.get_submodule(above)
        assert places.hold(model, described)
        holder._modules[last] = copy.deepcopy(module)
        assert not places.hold(model, described), name
        holder._modules[last] = module
    assert places.hold(model, described)


def test_a_part_that_is_gone_or_grown() -> None:
    model, described = found()
    places = Places.of(model, described)
    layers = model.layers
    model.layers = nn.ModuleList([layers[0]])
    assert not places.hold(model, described)
    model.layers = nn.ModuleList([*layers, copy.deepcopy(layers[0])])
    assert places.hold(model, described), "the parts that it names are there"


def test_settings_count_too() -> None:
    model, described = found()
    settings = {"scale": 1.0}
    described = replace(described, settings=lambda: dict(settings))
    places = Places.of(model, described)
    assert places.hold(model, described)
    settings["scale"] = 0.5
    assert not places.hold(model, described)
    settings["scale"] = 1.0
    assert places.hold(model, described)


def test_modules_that_the_model_does_not_list_are_left_alone() -> None:
    model, described = found()
    elsewhere = ToyModel()
    places = Places.of(elsewhere, described)
    assert places.paths == ()
    assert places.hold(model, described)
