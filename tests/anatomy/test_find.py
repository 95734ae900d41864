"""Which anatomy is taken, and what is said when none fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import circuit_trace as ct
from circuit_trace.anatomy import find_anatomy
from tests.anatomy.toy import ToyModel, anatomy
from tests.models import shared

EXPECTED_A_MODEL = "Expected a model (a torch.nn.Module such as a HookedTransformer), got {}."
MODELS_THAT_NOTHING_FITS = {
    "a linear layer": lambda: nn.Linear(2, 2),
    "a plain transformer": lambda: nn.TransformerEncoderLayer(8, 2),
}


@pytest.mark.parametrize("build", MODELS_THAT_NOTHING_FITS.values(), ids=MODELS_THAT_NOTHING_FITS)
def test_a_model_that_no_anatomy_fits(build) -> None:
    model = build()
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(model)
    message = str(caught.value)
    assert message.startswith(
        f"No anatomy fits a {kind}. Expected a HookedTransformer, a TransformerBridge, or a module "
        "for which an installed package registers an anatomy under the entry-point group "
        "'circuit_trace.anatomies' (asked here: "
    )
    assert "transformer_lens" in message
    assert message.endswith("An anatomy can also be passed directly: wrap(model, anatomy=...).")


@pytest.mark.parametrize(
    ("thing", "kind"), [("gpt2", "str"), (None, "NoneType"), (torch.ones(2), "Tensor")]
)
@pytest.mark.usefixtures("as_a_user")
def test_what_is_no_model(thing: object, kind: str) -> None:
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(thing)
    assert str(caught.value) == EXPECTED_A_MODEL.format(kind)


@pytest.mark.usefixtures("as_a_user")
def test_a_wrapper_is_not_wrapped_again() -> None:
    model = ct.wrap(shared("hooked LN"))
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(model)
    assert str(caught.value) == (
        "This model is wrapped already; wrap its .wrapped_model to wrap it anew."
    )


def test_another_anatomy_may_know_what_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module, *, separate_qkv: bool) -> None:
        raise ct.AnatomyError(f"Not this one, {separate_qkv}.")

    class Offered:
        def __init__(self, name: str, builder: object) -> None:
            self.name, self.load = name, lambda: builder

    offered = [Offered("a", refuse), Offered("b", anatomy)]
    monkeypatch.setattr("circuit_trace.anatomy.find.entry_points", lambda group: offered)
    assert find_anatomy(ToyModel(), separate_qkv=True).sources[1].names == ("B0.0", "B0.1")
    with pytest.raises(ct.AnatomyError, match=r"^Not this one, True\.$"):
        find_anatomy(nn.Linear(2, 2), separate_qkv=True)


def test_an_anatomy_that_fails_is_no_foreign_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name = "broken"

        def load(self) -> object:
            raise ImportError("No module named 'mine'\nand more")

    monkeypatch.setattr("circuit_trace.anatomy.find.entry_points", lambda group: [Broken()])
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(ToyModel())
    assert str(caught.value) == (
        "This ToyModel cannot be traced: looking for its anatomy failed with ImportError: No module "
        "named 'mine'."
    )
    assert isinstance(caught.value.__cause__, ImportError)


def test_anatomies_are_asked_in_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_anatomies.py").write_text(
        "import tests.anatomy.toy as toy\n"
        "asked = []\n"
        "def first(model, *, separate_qkv):\n"
        "    asked.append(('first', separate_qkv))\n"
        "def second(model, *, separate_qkv):\n"
        "    asked.append(('second', separate_qkv))\n"
        "    return toy.anatomy(model)\n"
        "def third(model, *, separate_qkv):\n"
        "    asked.append(('third', separate_qkv))\n"
        "    return toy.anatomy(model)\n"
    )
    metadata = tmp_path / "two_anatomies-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: two-anatomies\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[circuit_trace.anatomies]\n"
        "zzz_2 = two_anatomies:second\nzzz_1 = two_anatomies:first\nzzz_3 = two_anatomies:third\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_anatomy(ToyModel(), separate_qkv=False)
    import two_anatomies

    assert found.sources[1].names == ("B0.0", "B0.1")
    assert two_anatomies.asked == [("first", False), ("second", False)]
