"""The main job on the bundled model: the numbers it reports, against plain forward passes."""

from pathlib import Path

import pytest

import circuit_trace as ct
from circuit_trace.demo import main_job
from circuit_trace.demo.main_job import Report, run_demo
from circuit_trace.demo.prompts import ANSWERS, BUNDLED, CLEAN, CORRUPT, Prompts
from circuit_trace.visualize import images, write


@pytest.fixture(scope="module")
def model():
    return ct.load_model("bundled")


@pytest.fixture(scope="module")
def report(model, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("demo") / "new folder"
    with pytest.MonkeyPatch.context() as patch:
        # The picture's bytes are tested with the browser; here the other branch is taken.
        patch.setattr(write, "write_image", _no_browser)
        return run_demo(model, BUNDLED, n_edges=16, folder=folder, bar=False)


def _no_browser(_figure: object, path: Path, *_more: object) -> None:
    raise ct.FigureError(images.NO_BROWSER.format(suffix=path.suffix))


def difference(model, logits) -> float:
    right, wrong = (model.tokenizer.encode(word, add_special_tokens=False)[0] for word in ANSWERS)
    return (logits[0, -1, right] - logits[0, -1, wrong]).item()


def test_the_model_prefers_each_prompts_own_name(model, report: Report) -> None:
    clean, corrupt = (difference(model, model(model.to_tokens(text))) for text in (CLEAN, CORRUPT))
    assert clean > 4
    assert corrupt < -4
    assert float(report.outcome.clean) == pytest.approx(clean, abs=1e-4)
    assert float(report.outcome.corrupt) == pytest.approx(corrupt, abs=1e-4)


def test_each_score_is_the_effect_of_patching_the_edge_alone(model, report: Report) -> None:
    tokens = model.to_tokens(CLEAN)
    wrapped = ct.wrap(model, seq_len=tokens.shape[1])
    assert report.method == "exact"
    assert report.n_edges == wrapped.graph.n_edges
    for row in report.table.iloc[[0, 3, -1]].to_dict("records"):
        trace = wrapped.trace(CLEAN, corrupt=CORRUPT, edges=[(row["seq_idx"], row["edge"])])
        effect = difference(model, trace.logits) - float(report.outcome.clean)
        assert row["score"] == pytest.approx(effect, abs=1e-4)


def test_larger_models_are_scored_by_integrated_gradients(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_job, "EXACT_UP_TO", 100)
    monkeypatch.setattr(write, "write_image", _no_browser)
    report = run_demo(model, BUNDLED, n_edges=30, folder=tmp_path, bar=False)
    wrapped = ct.wrap(model, seq_len=15)
    scores = ct.score_edges(wrapped, (CLEAN, CORRUPT, *ANSWERS), method="eap-ig")
    end = scores["blocks.1.hook_resid_post"][14]
    found = report.table.set_index(["edge", "seq_idx"])["score"]
    assert report.method == "eap-ig"
    assert found["A1.0->Resid End", 14] == pytest.approx(float(end[6]))


def test_the_table_is_ordered_and_holds_the_traced_edges(report: Report) -> None:
    assert len(report.table) == 16
    assert list(report.table["score"].abs()) == sorted(report.table["score"].abs())[::-1]
    traced = {str(edge) for edge in report.trace.edges}
    assert {f"{row.edge} @{row.seq_idx}" for row in report.table.itertuples()} == traced  # pyright: ignore[reportAttributeAccessIssue]


def test_the_strongest_edges_together_turn_the_answer_round(report: Report) -> None:
    assert float(report.outcome.circuit) < 0 < float(report.outcome.clean)


def test_what_they_do_alone_is_told_too(model, report: Report) -> None:
    """With everything else patched, by masks written out."""
    wrapped = ct.wrap(model, seq_len=15)
    masks = {name: 1 - mask for name, mask in report.trace.masks.items()}
    rest = wrapped.trace(CLEAN, corrupt=CORRUPT, masks=masks)
    value = difference(model, rest.logits)
    assert float(report.outcome.complement) == pytest.approx(value, abs=1e-4)
    clean, corrupt = float(report.outcome.clean), float(report.outcome.corrupt)
    expected = (value - corrupt) / (clean - corrupt)
    assert report.outcome.faithfulness == pytest.approx(expected, abs=1e-5)


def test_the_circuit_moves_a_name_to_the_last_position(model, report: Report) -> None:
    """Embeddings of names enter it, and attention heads write the answer at the last position."""
    names = [row for row in report.table.to_dict("records") if row["token"] in ANSWERS]
    assert any(row["src"] == "Resid Start" for row in names)
    last = model.to_tokens(CLEAN).shape[1] - 1
    ends = [row for row in report.table.to_dict("records") if row["dest"] == "Resid End"]
    assert ends
    assert all(row["seq_idx"] == last for row in ends)
    assert any(row["src"].startswith("A1.") for row in ends)


def test_without_a_browser_the_page_is_written_and_the_report_says_how_to_get_pictures(
    report: Report,
) -> None:
    assert [page.name for page in report.pages] == ["circuit.html", "scores.html"]
    assert all(page.stat().st_size > 1_000_000 for page in report.pages)
    assert "A1.0-\\u003eResid End" in report.explorer.read_text(encoding="utf-8")
    assert "logit(Mary)" in report.explorer.read_text(encoding="utf-8")
    assert not report.pictures
    assert report.no_pictures is not None
    assert "apt-get install chromium" in report.no_pictures


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            Prompts(CLEAN, CORRUPT + " the", ANSWERS),
            r"must have the same number of tokens, got 15 and 16: what flows is drawn",
        ),
        (Prompts(CLEAN, CORRUPT, ("Mary", "Xerxes")), "tokenizer does not know 'Xerxes'"),
        (Prompts(CLEAN, CORRUPT, ("Mary", "Mary")), "got 'Mary' twice"),
        (Prompts(CLEAN, CORRUPT, ("Mary Ann", "John")), "'Mary Ann' is 2 of them"),
    ],
)
def test_prompts_that_do_not_fit(model, tmp_path: Path, prompts: Prompts, message: str) -> None:
    with pytest.raises(ct.InputError, match=message):
        run_demo(model, prompts, n_edges=4, folder=tmp_path, bar=False)
    assert not list(tmp_path.iterdir())
