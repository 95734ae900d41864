"""The two-layer toy, by hand: every number of it can be checked on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import circuit_trace as ct
from tests.anatomy.toy import ToyModel, anatomy
from tests.footprint import footprint

CLEAN = torch.tensor([[[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]]])
CORRUPT = -CLEAN

SOURCE_OUTPUTS = {
    "Resid Start": [1.0, 1.0],
    "B0.0": [1.0, 2.0],
    "B0.1": [3.0, 4.0],
    "B1.0": [5.0, 14.0],
    "B1.1": [15.0, 28.0],
}
"""On the clean input, at the last position."""

OUTPUT = [25.0, 49.0]

CUMULATIVE = [
    (["B0.1->Resid End"], [-19.0, -41.0]),
    (["B0.1->Resid End", "B0.0->B1.1"], [-13.0, -25.0]),
    (["B0.1->Resid End", "B0.0->B1.1", "Resid Start->B0.0"], [-9.0, -13.0]),
]
"""The output at the last position with the corrupt input and these edges patched from the clean one."""

ENTRY_POINT = "[circuit_trace.anatomies]\na_toy = tests.anatomy.toy:anatomy\n"


def passed_directly(**options: object) -> ct.PatchableModel:
    toy = ToyModel()
    return ct.wrap(toy, anatomy=anatomy(toy), slice_output="last_seq", **options)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that registers the toy's anatomy: its metadata, on the path."""
    metadata = tmp_path / "a_toy_anatomy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: a-toy-anatomy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINT)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture(params=["anatomy=", "entry point"])
def toy(request: pytest.FixtureRequest) -> ct.PatchableModel:
    if request.param == "anatomy=":
        return passed_directly()
    request.getfixturevalue("installed")
    return ct.wrap(ToyModel(), slice_output="last_seq")


def last(model: ct.PatchableModel, trace: ct.Trace) -> list[float]:
    return trace.logits[model.out_slice][0].tolist()


def test_its_graph(toy: ct.PatchableModel) -> None:
    assert [src.name for src in toy.srcs] == list(SOURCE_OUTPUTS)
    assert [dest.name for dest in toy.dests] == ["B0.0", "B0.1", "B1.0", "B1.1", "Resid End"]
    assert toy.n_edges == 2 + 2 * 3 + 5
    assert [edge.name for edge in toy.edges][:4] == [
        "Resid Start->B0.0",
        "Resid Start->B0.1",
        "Resid Start->B1.0",
        "B0.0->B1.0",
    ]


@pytest.mark.parametrize("sign", [1, -1])
def test_its_source_outputs(toy: ct.PatchableModel, sign: int) -> None:
    outputs = toy.source_outputs(sign * CLEAN)
    got = {name: outputs[name][0, -1].tolist() for name in outputs}
    assert got == {name: [sign * value for value in row] for name, row in SOURCE_OUTPUTS.items()}
    assert last(toy, toy.trace(sign * CLEAN)) == [sign * value for value in OUTPUT]


@pytest.mark.parametrize("sign", [1, -1], ids=["clean into corrupt", "the other way round"])
@pytest.mark.parametrize(("edges", "expected"), CUMULATIVE, ids=["1 edge", "2 edges", "3 edges"])
def test_patched_edges_accumulate(
    toy: ct.PatchableModel, edges: list[str], expected: list[float], sign: int
) -> None:
    trace = toy.trace(sign * CORRUPT, corrupt=sign * CLEAN, edges=edges)
    assert last(toy, trace) == [sign * value for value in expected]
    assert trace.reconstruction_error() < 1e-6


def test_nested_contexts_accumulate(toy: ct.PatchableModel) -> None:
    patched = toy.source_outputs(CLEAN)
    (first, one), (second, two), (third, three) = CUMULATIVE
    with toy.patch(patched, edges=first):
        assert toy(CORRUPT)[0, -1].tolist() == one
        with toy.patch(patched, edges=second[-1:]):
            assert toy(CORRUPT)[0, -1].tolist() == two
            with toy.patch(patched, edges=third[-1:]):
                assert toy(CORRUPT)[0, -1].tolist() == three
            assert toy(CORRUPT)[0, -1].tolist() == two
        assert toy(CORRUPT)[0, -1].tolist() == one
    assert toy(CORRUPT)[0, -1].tolist() == [-25.0, -49.0]


@pytest.mark.filterwarnings("ignore::circuit_trace.MaskWarning")  # beyond 0 to 1 on purpose
@pytest.mark.parametrize(
    ("mask", "expected"), [(0.0, [-25.0, -49.0]), (0.5, [-22.0, -45.0]), (-1.0, [-31.0, -57.0])]
)
def test_masks_interpolate(toy: ct.PatchableModel, mask: float, expected: list[float]) -> None:
    trace = toy.trace(CORRUPT, corrupt=CLEAN, edges={"B0.1->Resid End": mask})
    assert last(toy, trace) == expected
    received = trace.edge("B0.1->Resid End").received[0, -1].tolist()
    assert received == [-3 + 6 * mask, -4 + 8 * mask]


def test_one_position() -> None:
    toy = passed_directly(seq_len=3)
    trace = toy.trace(CORRUPT, corrupt=CLEAN, edges=[(1, "B0.1->Resid End"), (2, "B0.0->B1.1")])
    plain = toy.trace(CORRUPT).logits
    # B0.1 writes [6, 8] at position 1; B0.0 changes by [2, 4] at position 2, times B1.1's [3, 4].
    assert (trace.logits - plain).tolist() == [[[0.0, 0.0], [12.0, 16.0], [6.0, 16.0]]]
    assert [str(edge) for edge in trace.edges] == ["B0.1->Resid End @1", "B0.0->B1.1 @2"]


def test_ablations_need_no_tokens(toy: ct.PatchableModel) -> None:
    everything_else = toy.trace(CLEAN, edges=["B1.1->Resid End"], ablation=ct.AblationType.ZERO)
    assert last(toy, everything_else) == [10.0, 21.0]
    mean = toy.trace(CLEAN, edges=["B1.1->Resid End"], ablation=ct.AblationType.BATCH_ALL_TOK_MEAN)
    assert last(toy, mean) == [10.0 + 30.0, 21.0 + 56.0]


def test_the_record_holds_no_tokens_but_the_rest(toy: ct.PatchableModel) -> None:
    trace = toy.trace(CLEAN, corrupt=CORRUPT, edges=["B0.1->Resid End"])
    assert trace.tokens is None
    assert trace.token_strings() is None
    row = trace.table().iloc[0]
    assert (row["edge"], row["mask"], row["cosine"]) == ("B0.1->Resid End", 1.0, -1.0)
    # [9, 12], [6, 8], [3, 4] are written: the first is largest, but may be a sink.
    assert (row["at"], row["current_norm"]) == (1, pytest.approx(10))
    assert row["delta_norm"] == pytest.approx(20)
    assert trace.table(at=0)["clean_norm"].tolist() == pytest.approx([15])


def test_text_is_refused_without_a_tokenizer(toy: ct.PatchableModel) -> None:
    with pytest.raises(ct.InputError) as caught:
        toy.trace("one two")
    assert str(caught.value) == (
        "Got text, but the wrapped model has no tokenizer: pass token ids [batch, seq]."
    )


def test_the_toy_is_left_as_it_was(toy: ct.PatchableModel) -> None:
    before = footprint(toy.wrapped_model)
    toy.trace(CLEAN, corrupt=CORRUPT, edges=["B0.1->Resid End"])
    assert footprint(toy.wrapped_model) == before


def test_no_anatomy_fits_the_toy_unless_one_is_installed() -> None:
    with pytest.raises(ct.AnatomyError, match=r"No anatomy fits a tests\.anatomy\.toy\.ToyModel\."):
        ct.wrap(ToyModel())


def test_a_wrong_anatomy_is_refused() -> None:
    class Doubled(ToyModel):
        """Adds every layer's output twice, which the anatomy does not say."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.start(x)
            for layer in self.layers:
                x = 2 * layer(x) - x
            return self.end(x)

    model = Doubled()
    before = footprint(model)
    with pytest.raises(ct.AnatomyError) as caught:
        ct.wrap(model, anatomy=anatomy(model))
    assert "does not reproduce it: the residual stream that" in str(caught.value)
    assert footprint(model) == before
    assert ct.wrap(model, anatomy=anatomy(model), verify=False).n_edges == 13
