"""The command line, as a person would type it."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import circuit_trace as ct
from circuit_trace import cli
from circuit_trace.cli.words import in_shell_words
from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
from circuit_trace.visualize import images, write
from tests.models import CASES, N_HEADS, wrapped

EDGES = ["A1.0->Resid End", "MLP 0->A1.*.V = 0.5"]
MASKS = {"A1.0->Resid End": 1.0, "MLP 0->A1.*.V": 0.5}

PROMPTS = ("--clean", CLEAN, "--corrupt", CORRUPT)

END = "blocks.1.hook_resid_post"

Printed = pytest.CaptureFixture[str]

pytestmark = pytest.mark.filterwarnings("ignore::circuit_trace.FormatWarning")


@pytest.fixture(scope="module")
def model() -> ct.PatchableModel:
    return ct.wrap(ct.load_model("bundled"))


@pytest.fixture(scope="module")
def trace(model: ct.PatchableModel) -> ct.Trace:
    return model.trace(CLEAN, corrupt=CORRUPT, edges=MASKS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def no_browser(_figure: object, path: Path, *_more: object) -> None:
    raise ct.FigureError(images.NO_BROWSER.format(suffix=path.suffix))


def run(capsys: Printed, *arguments: str) -> str:
    """Run a command that works, and return what it prints."""
    code = cli.main(arguments)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def scores_of(model: ct.PatchableModel, path: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {module.name: module.shape for module in model.graph.modules}
    scores = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    ct.save_scores(scores, path, format="eap_ig" if path.endswith(".json") else None)
    return scores


def test_demo_prints_the_table_and_names_the_files(
    capsys: Printed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "write_image", no_browser)
    printed = run(capsys, "demo", "--top", "3", "--out", "pics")
    header = next(line for line in printed.splitlines() if "clean_norm" in line)
    assert header.split() == [
        "edge", "position", "token", "clean_norm", "received_norm", "cosine", "score",
    ]  # fmt: skip
    assert "these edges patched" in printed
    assert "everything else patched" in printed
    assert "measured for each of 1,650 edges" in printed
    assert "wrote pics/circuit.html, pics/scores.html" in printed
    assert "no PNG: Pictures such as .png" in printed
    assert (folder / "pics" / "circuit.html").exists()
    assert len(ct.Trace.load(folder / "pics" / "circuit.trace").edges) == 3


def test_score_prints_the_strongest_and_writes_files(
    capsys: Printed, model: ct.PatchableModel
) -> None:
    files = ["s.pkl", "s.json", "s.html"]
    printed = run(
        capsys, "score", "--clean", CLEAN, "--corrupt", CORRUPT, "--answers", *ANSWERS, "--rows", "2",
        "-o", *files,
    )  # fmt: skip
    expected = ct.score_edges(model, (CLEAN, CORRUPT, *ANSWERS))
    lines = [line for line in printed.splitlines() if "->" in line]
    assert lines[0].split() == ["A1.0->Resid", "End", f"{float(expected[END].min()):.4f}"]
    assert len(lines) == 2
    assert printed.endswith("wrote s.pkl\nwrote s.json\nwrote s.html\n")
    for name in files[:2]:
        found = ct.load_scores(name)
        assert all(torch.equal(found[key], score) for key, score in expected.items())


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_score_a_file_of_prompts_of_two_lengths(
    capsys: Printed, model: ct.PatchableModel, suffix: str
) -> None:
    pairs = [(CLEAN, CORRUPT, *ANSWERS), (CORRUPT, CLEAN, *ANSWERS[::-1])]
    short = ("When Mary and", "When John and", "John", "Mary")
    rows = pd.DataFrame([*pairs, short], columns=["clean", "corrupt", "answers", "wrong_answers"])
    if suffix == ".csv":
        rows.to_csv("data.csv", index=False)
    else:
        rows.to_json("data.jsonl", orient="records", lines=True)
    run(
        capsys, "score", "--data", f"data{suffix}", "--method", "eap-ig", "--steps", "2",
        "--resume", "run.part", "-o", "s.pkl",
    )  # fmt: skip
    expected = ct.score_edges(model, [*pairs, short], method="eap-ig", steps=2)
    found = ct.load_scores("s.pkl")
    for key, score in expected.items():
        torch.testing.assert_close(found[key], score, rtol=1e-4, atol=1e-5)
    assert Path("run.part").exists()


def test_a_shorter_corrupt_prompt_is_aligned_at_the_end(capsys: Printed) -> None:
    """Positions are those of the longer prompt, and what has no counterpart is not patched."""
    prompts = ("--clean", CLEAN, "--corrupt", "When John and Mary went to", "--positions")
    printed = run(capsys, "score", *prompts, "--metric", "loss", "-o", "p.pkl")
    assert "prompts: 1." in printed
    scores = ct.load_scores("p.pkl")["blocks.1.hook_resid_post"]
    n = len(prompts[3].split()) + 1  # and the beginning of the text
    assert scores.shape[0] == len(CLEAN.split()) + 1
    assert not scores[:-n].any()
    assert scores[-n:-1].any(1).all()
    run(capsys, "trace", *prompts, "--edges", "A1.0->Resid End", "-o", "p.trace")
    trace = ct.Trace.load("p.trace")
    assert not trace.edge((0, "A1.0->Resid End")).delta[:, :-n].any()


def test_score_at_positions_then_trace_the_strongest(capsys: Printed) -> None:
    prompts = ("--clean", CLEAN, "--corrupt", CORRUPT)
    printed = run(
        capsys, "score", *prompts, "--answers", *ANSWERS, "--method", "exact", "--positions",
        "--rows", "1", "-o", "p.pkl", "p.html",
    )  # fmt: skip
    assert printed.splitlines()[1].split()[:-1] == ["Resid", "Start->A0.0.V", "10", "John"]
    assert "The 1 strongest of 1,650 edges, by exact and logit_diff; prompts: 1." in printed
    assert "John" in Path("p.html").read_text(encoding="utf-8")
    run(
        capsys, "trace", *prompts, "--positions", "--scores", "p.pkl", "--top-scores", "1",
        "-o", "p.trace",
    )  # fmt: skip
    (edge,) = ct.Trace.load("p.trace").edges
    assert str(edge) == "Resid Start->A0.0.V @10"


def test_trace_prints_and_keeps_the_pass(capsys: Printed, trace: ct.Trace) -> None:
    files = ["pass.trace", "pass.csv", "pass.html"]
    printed = run(
        capsys, "trace", "--clean", CLEAN, "--corrupt", CORRUPT, "--edges", *EDGES, "-o", *files
    )
    rows = [line.split()[0] for line in printed.splitlines() if "->" in line]
    assert set(rows) == {"A1.0->Resid", "MLP"}
    assert len(rows) == 5
    assert printed.endswith("wrote pass.trace\nwrote pass.csv\nwrote pass.html\n")
    kept = ct.Trace.load("pass.trace")
    assert torch.equal(kept.logits, trace.logits)
    assert list(pd.read_csv("pass.csv")["edge"]) == trace.table()["edge"].tolist()
    assert "A1.0-\\u003eResid End" in Path("pass.html").read_text(encoding="utf-8")


def test_trace_at_positions_with_heads_and_tokens(capsys: Printed) -> None:
    printed = run(
        capsys, "trace", "--clean", CLEAN, "--corrupt", CORRUPT, "--edges", "A1.0->Resid End @14",
        "--nodes", "A0.1 @3 = 0.25", "--heads", "A1.*", "--direction", "Mary", "John", "--tokens", "1",
        "--by", "mask", "--rows", "1", "-o", "x.trace",
    )  # fmt: skip
    said, _, header, row = printed.splitlines()[:4]
    assert said == "delta_norm and cosine: clean→received"
    assert header.split()[-2:] == ["promotes", "suppresses"]
    assert row.split()[:6] == ["A1.0->Resid", "End", "14", "14", "to", "1.0"]
    kept = ct.Trace.load("x.trace")
    assert kept.heads == ("A1.0", "A1.1", "A1.2", "A1.3")
    assert kept.edge("A0.1->MLP 0", 3).mask == 0.25
    assert kept.edge("A0.1->MLP 0", 2).mask == 0


def test_trace_and_show_say_how_well_it_did(capsys: Printed, model: ct.PatchableModel) -> None:
    ask = ["--clean", CLEAN, "--corrupt", CORRUPT, "--answers", "Mary", "John"]
    printed = run(capsys, "trace", *ask, "--edges", *EDGES, "--complement", "-o", "x.trace")
    outcome = model.trace(
        CLEAN, corrupt=CORRUPT, edges=MASKS, answers=("Mary", "John"), complement=True
    ).outcome
    assert printed.splitlines()[0] == str(outcome)
    assert f"\n{outcome}\n" in run(capsys, "show", "x.trace")
    kept = run(capsys, "trace", *ask, "--edges", *EDGES, "--patch", "complement")
    assert f"everything else patched {float(outcome.complement):+.2f}".replace("-", "−") in kept
    assert "these edges patched" not in kept
    measured = run(capsys, "trace", *ask, "--edges", *EDGES, "--metric", "answer_logprob")
    assert measured.startswith("answer_logprob: clean −0.0")


def test_trace_patches_what_a_file_scores_highest(
    capsys: Printed, model: ct.PatchableModel
) -> None:
    scores = scores_of(model, "scores.json")
    run(
        capsys, "trace", "--clean", CLEAN, "--corrupt", CORRUPT, "--scores", "scores.json",
        "--top-scores", "3", "-o", "x.trace",
    )  # fmt: skip
    patched = {edge.name for edge in ct.Trace.load("x.trace").edges}
    every = model.trace(CLEAN).top(3, by="score", edges="*->*", scores=scores)
    assert patched == set(every["edge"])


def test_trace_patches_a_circuit_whole_and_at_its_positions(capsys: Printed) -> None:
    """A file of 0 and 1 is no ranking, and says itself which positions it tells apart."""
    model = ct.wrap(ct.load_model("bundled"), seq_len=15)
    scores = ct.score_edges(model, (CLEAN, CORRUPT, *ANSWERS))
    chosen = scores.circuit(n_edges=40, method="greedy")
    chosen.save("c.pt")
    scores.save("s.pt")
    ask = ["--clean", CLEAN, "--corrupt", CORRUPT, "-o", "x.trace"]
    printed = run(capsys, "trace", *ask, "--scores", "c.pt")
    kept = ct.Trace.load("x.trace")
    assert kept.graph.seq_len == 15
    assert all(torch.equal(kept.masks[name], chosen[name]) for name in chosen)
    assert "--top-scores" not in printed
    printed = run(capsys, "trace", *ask, "--scores", "s.pt", "--top-scores", "3")
    n_scored = sum(int(score.count_nonzero()) for score in scores.values())
    assert printed.startswith(f"patches 3 of {n_scored:,} edges that score, the strongest")
    assert len(ct.Trace.load("x.trace").edges) == 3


def test_trace_with_an_ablation_needs_no_corrupt_prompt(capsys: Printed) -> None:
    run(
        capsys,
        "trace",
        "--clean",
        CLEAN,
        "--edges",
        "A0.1->MLP 1",
        "--ablation",
        "zero",
        "-o",
        "z.trace",
    )
    assert ct.Trace.load("z.trace").patched.ablation is ct.AblationType.ZERO


def test_show_a_trace(capsys: Printed, trace: ct.Trace) -> None:
    trace.save("pass.trace")
    printed = run(capsys, "show", "pass.trace")
    about, table = printed.split("\n\n")
    assert about.startswith("model    bundled (")
    assert f"configuration {trace.about.config_hash}" in about
    assert "prompt 0 <|endoftext|>|When|Mary|and|John" in about
    assert "pass     1 × 15 tokens, 110 edges, 5 edges patched or named, resample" in about
    assert len(table.strip().splitlines()) == 6


def test_show_other_edges_of_a_trace(capsys: Printed, trace: ct.Trace) -> None:
    trace.save("pass.trace")
    asked = ["--edges", "A0.*->MLP 0", "--by", "cosine", "--rows", "2"]
    printed = run(capsys, "show", "pass.trace", *asked, "-o", "all.csv")
    assert "… the 2 smallest by cosine of 4 edges" in printed
    table = pd.read_csv("all.csv")
    assert set(table["src"]) == {"A0.0", "A0.1", "A0.2", "A0.3"}
    assert set(table["dest"]) == {"MLP 0"}


def test_show_scores(capsys: Printed, model: ct.PatchableModel) -> None:
    scores = scores_of(model, "scores.pkl")
    printed = run(capsys, "show", "scores.pkl", "--rows", "1", "--edges", "*->Resid End")
    end = scores["blocks.1.hook_resid_post"]
    assert "scores of 11 sources and 27 destinations: 11 edges, 11 of them not 0" in printed
    value, edge = printed.strip().splitlines()[-1].split(maxsplit=1)
    assert edge == f"{model.srcs[int(end.abs().argmax())]}->Resid End"
    assert float(value) == pytest.approx(float(end[end.abs().argmax()]), rel=1e-5)


@pytest.mark.parametrize("suffix", [".html", ".svg", ".mmd"])
def test_draw_scores_and_traces(
    suffix: str,
    capsys: Printed,
    model: ct.PatchableModel,
    trace: ct.Trace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(write, "write_image", lambda figure, *_: drawn.append(figure))
    scores_of(model, "scores.json")
    trace.save("pass.trace")
    for file in ("scores.json", "pass.trace"):
        printed = run(capsys, "draw", file, "-o", f"x{suffix}", "--threshold", "0.4")
        assert printed == f"wrote x{suffix}\n"
        assert drawn or Path(f"x{suffix}").stat().st_size > 100
    if suffix == ".svg":
        assert len(drawn) == 2


def test_draw_for_a_model(capsys: Printed, model: ct.PatchableModel) -> None:
    Path("edges.json").write_text(json.dumps([["a0.h1", "a1.h2.q"], ["m1", "resid_post"]]))
    run(capsys, "draw", "edges.json", "--model", "bundled", "-o", "x.json")
    figure = json.loads(Path("x.json").read_text())
    labels = [label.split("<br>")[0] for label in figure["data"][0]["link"]["label"]]
    assert sorted(labels) == ["A0.1->A1.2.Q", "MLP 1->Resid End"]


def test_convert_there_and_back(capsys: Printed, model: ct.PatchableModel) -> None:
    scores = scores_of(model, "a.pkl")
    steps = ["a.pkl", "b.json", "c.graphml", "d.dot", "e.mmd", "f.pkl"]
    for here, there in itertools.pairwise(steps):
        more = ["--format", "eap_ig"] if there.endswith(".json") else []
        assert run(capsys, "convert", here, there, *more) == f"wrote {there}\n"
    back = ct.load_scores("f.pkl")
    assert all(torch.equal(back[name], score) for name, score in scores.items())


def test_convert_a_circuit_and_without_positions(capsys: Printed) -> None:
    model = ct.wrap(ct.load_model("bundled"), seq_len=15)
    trace = model.trace(
        CLEAN, corrupt=CORRUPT, edges={(3, "A0.1->MLP 1"): 1, (4, "A0.1->MLP 1"): 0.5}
    )
    trace.save("pass.trace")
    run(capsys, "convert", "pass.trace", "sum.pkl", "--sum-positions")
    assert ct.load_scores("sum.pkl")["blocks.1.hook_mlp_in"][2] == 1.5
    run(capsys, "convert", "sum.pkl", "circuit.pth", "--threshold", "1.5")
    assert ct.load_scores("circuit.pth")["blocks.1.hook_mlp_in"].tolist() == [0, 0, 1] + [0] * 7


# --- circuit, faithfulness, explore, diff -------------------------------------------------------


def best(scores: dict[str, torch.Tensor], model: ct.PatchableModel, n: int) -> list[str]:
    """The edges of the largest |score|, by hand."""
    found = {}
    for module in model.graph.modules:
        rows = scores[module.name].reshape(len(module.dests), -1)
        for dest, row in zip(module.dests, rows.tolist(), strict=True):
            found |= {f"{model.srcs[k].name}->{dest.name}": value for k, value in enumerate(row)}
    return sorted(found, key=lambda name: -abs(found[name]))[:n]


def test_circuit_prints_and_writes_the_strongest(capsys: Printed, model: ct.PatchableModel) -> None:
    scores = scores_of(model, "s.pkl")
    files = ["c.pkl", "c.pth", "c.json", "c.graphml"]
    printed = run(
        capsys, "circuit", "s.pkl", "--n-edges", "40", "--no-prune", "--rows", "3",
        "--format", "edge_pruning", "-o", *files,
    )  # fmt: skip
    expected = best(scores, model, 40)
    assert printed.startswith("circuit of 40 of 110 edges")
    assert [line.split(maxsplit=1)[1] for line in printed.splitlines()[2:5]] == expected[:3]
    assert "… the 3 strongest of 40 edges (--rows)" in printed
    for name in files:
        found = ct.load_scores(name, model)
        kept = {str(edge) for edge in model.trace(CLEAN, corrupt=CORRUPT, masks=found).edges}
        assert kept == set(expected), name


@pytest.mark.parametrize("size", [["--threshold", "0.9"], ["--fraction", "0.3"]])
def test_circuit_of_every_size_and_method(
    capsys: Printed, model: ct.PatchableModel, size: list[str]
) -> None:
    scores = scores_of(model, "s.pkl")
    run(capsys, "circuit", "s.pkl", *size, "--method", "greedy", "-o", "c.pkl")
    expected = ct.circuit(scores, **{size[0][2:]: float(size[1])}, method="greedy")
    found = ct.load_scores("c.pkl")
    assert all(torch.equal(found[name], score) for name, score in expected.items())


def test_faithfulness_of_files_is_that_of_circuits_patched_by_hand(
    capsys: Printed, model: ct.PatchableModel
) -> None:
    scores_of(model, "a.pkl")
    run(capsys, "score", *PROMPTS, "--answers", *ANSWERS, "-o", "b.pkl")
    printed = run(
        capsys, "faithfulness", "--scores", "a.pkl", "b.pkl", *PROMPTS, "--answers", *ANSWERS,
        "--sizes", "20", "110", "-o", "f.csv", "f.html",
    )  # fmt: skip
    assert printed.count("CPR ") == 2
    assert printed.endswith("wrote f.csv\nwrote f.html\n")
    table = pd.read_csv("f.csv")
    assert table["scores"].tolist() == ["a", "a", "b", "b"]
    ids = [model.tokenizer.encode(answer, add_special_tokens=False)[0] for answer in ANSWERS]
    for name, row in (("a", table.iloc[0]), ("b", table.iloc[2])):
        run(capsys, "circuit", f"{name}.pkl", "--n-edges", "20", "-o", "c.pkl")
        others = {key: 1 - kept for key, kept in ct.load_scores("c.pkl").items()}
        logits = model.trace(CLEAN, corrupt=CORRUPT, masks=others).logits[0, -1]
        assert row["mean"] == pytest.approx(float(logits[ids[0]] - logits[ids[1]]), rel=1e-4)
    assert table["faithfulness"][1::2].tolist() == pytest.approx([1, 1])
    page = Path("f.html").read_text(encoding="utf-8")
    assert all(f'"name":"{name}' in page.replace(": ", ":") for name in ("a", "b"))


def test_faithfulness_of_scores_made_now_and_at_positions(
    capsys: Printed, model: ct.PatchableModel
) -> None:
    printed = run(
        capsys, "faithfulness", *PROMPTS, "--answers", *ANSWERS, "--method", "exact",
        "--choose", "greedy", "--sizes", "0.2", "1",
    )  # fmt: skip
    assert printed.startswith("exact: logit_diff, 110 edges, prompts: 1")
    data = (CLEAN, CORRUPT, *ANSWERS)
    scores = ct.exact_scores(model, data)
    curve = ct.faithfulness(model, data, scores, sizes=(0.2, 1.0), circuit="greedy")
    assert f"CPR {curve.cpr:.4f}" in printed
    run(capsys, "score", *PROMPTS, "--answers", *ANSWERS, "--positions", "-o", "p.pkl")
    printed = run(
        capsys, "faithfulness", "--scores", "p.pkl", *PROMPTS, "--answers", *ANSWERS, "--sizes", "1",
    )  # fmt: skip
    assert printed.startswith("p: logit_diff, 1,650 edges, prompts: 1")


def test_explore_writes_a_page(capsys: Printed, trace: ct.Trace) -> None:
    trace.save("pass.trace", unembed=True)
    scores_of(ct.wrap(ct.load_model("bundled")), "s.pkl")
    assert run(capsys, "explore", "pass.trace", "-o", "e.html") == "wrote e.html\n"
    assert Path("e.html").read_text(encoding="utf-8") == trace.explore().html
    options = ["--edges", "*->A1.0.Q", "--scores", "s.pkl", "--max-edges", "2", "--theme", "dark"]
    run(capsys, "explore", "pass.trace", "-o", "e.html", *options, "--direction", *ANSWERS)
    expected = trace.explore(
        edges=["*->A1.0.Q"], scores=ct.load_scores("s.pkl"), max_edges=2, theme="dark",
        direction=ANSWERS,
    )  # fmt: skip
    assert Path("e.html").read_text(encoding="utf-8") == expected.html


def test_diff_of_traces(capsys: Printed, model: ct.PatchableModel, trace: ct.Trace) -> None:
    other = model.trace(CLEAN, corrupt=CORRUPT, edges={"A1.0->Resid End": 0.25})
    trace.save("a.trace")
    other.save("b.trace")
    printed = run(capsys, "diff", "a.trace", "b.trace", "--rows", "2", "-o", "d.csv", "d.html")
    table = pd.read_csv("d.csv")
    change = [
        float((other.edge(name).received - trace.edge(name).received)[0, at].norm())
        for name, at in zip(table["edge"], table["at"], strict=True)
    ]
    assert table["received_change"].tolist() == pytest.approx(change, abs=1e-3)
    first = table["edge"][table["received_change"].argmax()]
    assert printed.splitlines()[1].strip().startswith(first)
    assert "… the 2 largest by received_change of 110 edges" in printed
    assert "1.00\\u21920.25" in Path("d.html").read_text(encoding="utf-8").lower()


def test_diff_of_scores(capsys: Printed, model: ct.PatchableModel) -> None:
    scores = scores_of(model, "a.json")
    changed = {name: score.clone() for name, score in scores.items()}
    changed[END][3] += 5
    changed[END][4] -= 7
    ct.save_scores(changed, "b.pkl")
    printed = run(capsys, "diff", "a.json", "b.pkl", "--rows", "2", "-o", "d.csv", "d.json")
    rows = [line.split() for line in printed.splitlines()[1:3]]
    names = [f"{model.srcs[k].name}->Resid End" for k in (4, 3)]
    assert [" ".join(row[:-3]) for row in rows] == names
    assert [float(row[-1]) for row in rows] == [-7, 5]
    table = pd.read_csv("d.csv").set_index("edge")
    assert table["other_score"][names[0]] == pytest.approx(float(scores[END][4]) - 7, rel=1e-5)
    assert len(table) == 110
    figure = json.loads(Path("d.json").read_text())
    said = [label.split("<br>")[0] for label in figure["data"][0]["link"]["label"]]
    assert set(names) <= set(said)


def test_by_cosine_the_most_changed_comes_first(capsys: Printed, trace: ct.Trace) -> None:
    trace.save("pass.trace")
    printed = run(capsys, "show", "pass.trace", "--edges", "*->*", "--by", "cosine", "--rows", "1")
    cosines = {
        edge.name: float(torch.cosine_similarity(flow.clean[0, at], flow.received[0, at], dim=0))
        for edge in trace.graph.edges
        for flow in [trace.edge(edge.name)]
        for at in [1 + int(flow.effect[0, 1:].norm(dim=-1).argmax())]
    }
    least = min(cosines, key=cosines.__getitem__)
    row = printed.split("\n\n")[1].splitlines()[1]
    assert row.strip().startswith(least)
    assert "… the 1 smallest by cosine of 110 edges" in printed


GROUPED = next(
    (name for name, case in CASES.items() if "bridge" in name and case.n_kv_heads < N_HEADS), None
)


def test_convert_scores_of_shared_keys_and_values(capsys: Printed) -> None:
    """`--groups sum` gives each query head an equal share, and adds the shares up again."""
    model = wrapped(GROUPED)
    shapes = {module.name: module.shape for module in model.graph.modules}
    scores = {name: torch.randn(shape) for name, shape in shapes.items()}
    ct.save_scores(scores, "a.pkl")
    assert cli.main(["convert", "a.pkl", "b.json", "--format", "eap_ig"]) == 1
    assert "--groups sum for effects" in capsys.readouterr().err
    run(capsys, "convert", "a.pkl", "b.json", "--format", "eap_ig", "--groups", "sum")
    back = ct.load_scores("b.json", model, groups="sum")
    for name, score in scores.items():
        torch.testing.assert_close(back[name], score)


def test_a_trace_kept_with_its_unembedding_reads_tokens_later(capsys: Printed) -> None:
    run(capsys, "trace", *PROMPTS, "--edges", *EDGES, "--unembed", "-o", "u.trace", "--rows", "1")
    printed = run(capsys, "show", "u.trace", "--tokens", "1", "--direction", *ANSWERS)
    assert "promotes" in printed


WORDS = {
    "a flag with a value": (
        "Say groups='sum' or groups=\"same\".",
        "Say --groups sum or --groups same.",
    ),
    "a flag alone": ("Choose one by select=: a, b.", "Choose one by --select: a, b."),
    "true": ("in_graph=True reads them.", "--in-graph reads them."),
    "none": ("Got groups=None.", "Got no --groups."),
    "renamed": ("batch_idx=3 is outside (max_edges=5).", "--batch 3 is outside (--max-edges 5)."),
    "a subject": ("metric must be one of a.", "--metric must be one of a."),
    "no option": ("A file's format must be known; x=3.", "A file's format must be known; x=3."),
    "lines": ("one\ntwo", "one two"),
}


@pytest.mark.parametrize("case", WORDS)
def test_errors_speak_the_language_of_the_shell(case: str) -> None:
    python, shell = WORDS[case]
    assert in_shell_words(python) == shell


def test_what_cannot_be_said_in_the_shell_names_what_can(capsys: Printed) -> None:
    model = ct.wrap(ct.load_model("bundled"), seq_len=15)
    trace = model.trace(CLEAN, corrupt=CORRUPT, edges={(3, "A0.1->MLP 1"): 0.5})
    trace.save("pass.trace")
    for arguments, said in (
        (["convert", "pass.trace", "x.json", "--format", "eap_ig"], "convert --sum-positions."),
        (["convert", "pass.trace", "x.pth"], "no token positions|--threshold 0.01"),
        (["show", "pass.trace", "--tokens", "2"], "by circuit-trace trace --unembed."),
        (["explore", "s.pkl", "-o", "x.html"], "for circuit-trace draw, circuit and convert;"),
    ):
        scores_of(model, "s.pkl") if not Path("s.pkl").exists() else None
        assert cli.main(arguments) == 1
        assert re.search(said.replace(".", "[.]"), capsys.readouterr().err), arguments


WRONG = {
    "prompts of other lengths": (
        ["demo", "--clean", "When Mary"],
        "The two prompts must have the same number of tokens, got 3 and 15",
    ),
    "no such model": (["demo", "--model", "no-such-model"], "no-such-model"),
    "one answer": (
        ["score", "--clean", "When", "--corrupt", "When", "--answers", "Mary"],
        "logit_diff compares two tokens: give both, --answers RIGHT WRONG, or another --metric.",
    ),
    "nothing to score": (["score"], "Give one prompt with --clean, or a file of them with --data."),
    "two kinds of prompts": (
        ["score", "--data", "d.csv", "--clean", "When"],
        "Give one prompt with",
    ),
    "a column as an option": (
        ["score", "--data", "data.csv", "--corrupt", "When"],
        "--corrupt is for --clean; with --data it is a column of the file.",
    ),
    "three answers": (
        ["score", "--clean", "When", "--answers", "a", "b", "c"],
        "the right next token and the wrong one; got 3",
    ),
    "no such data": (["score", "--data", "none.csv"], "Cannot read 'none.csv'"),
    "data of another kind": (["score", "--data", "text.json"], "must be a .csv or .jsonl file"),
    "not data": (["score", "--data", "text.jsonl"], "Cannot read 'text.jsonl'"),
    "data without prompts": (["score", "--data", "text.csv"], "its 0 rows have 'hello'"),
    "an empty cell": (
        ["score", "--data", "data.csv"],
        "row 1, column 'corrupt' is ''; expected text",
    ),
    "no such metric": (["score", "--clean", "When", "--metric", "x"], "metric must be one of"),
    "no such method": (["score", "--clean", "When", "--method", "x"], "method must be one of"),
    "positions in EAP-IG's format": (
        ["score", "--clean", "When", "--positions", "-o", "x.json"],
        "which has no token positions",
    ),
    "no such edge": (
        ["trace", "--clean", "When", "--corrupt", "and", "--edges", "A9.9->MLP 1"],
        "Unknown source 'A9.9'",
    ),
    "no such mask": (
        ["trace", "--clean", "When", "--corrupt", "and", "--edges", "A0.1->MLP 1 = half"],
        "expected a number behind the =",
    ),
    "nothing to patch in": (
        ["trace", "--clean", "When", "--edges", "A0.1->MLP 1"],
        "Give --corrupt with a prompt, or --ablation zero.",
    ),
    "no such ablation": (
        ["trace", "--clean", "When", "--ablation", "none"],
        "one of resample, zero",
    ),
    "no such extension": (
        ["trace", "--clean", "When", "-o", "x.xyz"],
        "extensions that work are .trace",
    ),
    "no such file": (["show", "none.trace"], "none.trace"),
    "no such scores": (["draw", "none.json", "-o", "x.html"], "No such file"),
    "not scores": (["show", "text.json"], "text.json"),
    "not a trace": (["show", "text.trace"], "text.trace"),
    "no such column": (["trace", "--clean", "When", "--by", "x"], "by must be a column of numbers"),
    "no such prompt": (["trace", "--clean", "When", "--batch", "3"], "--batch 3 is outside"),
    "a trace and scores": (["diff", "scores.pkl", "text.trace"], "got one of each"),
    "scores of other positions": (
        ["diff", "scores.pkl", "positions.pkl"],
        "38 nodes at 3 positions",
    ),
    "a circuit of more edges than there are": (
        ["circuit", "scores.pkl", "--n-edges", "500"],
        "--n-edges must be a whole number of edges, from 0 to all 110; got 500.",
    ),
    "more than all edges": (["circuit", "scores.pkl", "--fraction", "2"], "from 0 to 1; got 2.0"),
    "a curve as a graph": (["faithfulness", "--clean", "a", "-o", "x.mmd"], "extensions that work"),
    "sizes of two kinds": (
        [
            "faithfulness",
            "--scores",
            "scores.pkl",
            *PROMPTS,
            "--answers",
            *ANSWERS,
            "--sizes",
            "0.5",
            "3",
        ],
        "a part of all edges, from 0 to 1; got 3.0",
    ),
    "an explorer as a picture": (["explore", "x.trace", "-o", "x.png"], "work are .html, .htm"),
    "a name too long": (["draw", "scores.pkl", "-o", "x" * 300 + ".html"], "File name too long"),
    "half a character": (["draw", "scores.pkl", "-o", "\ud800.html"], "must not hold a zero"),
    "half a character to read": (["show", "\ud800.pkl"], "must not hold a zero character or half"),
    "a picture of scores by show": (["show", "scores.pkl", "-o", "x.html"], "circuit-trace draw"),
    "no positions to sum": (["convert", "scores.pkl", "x.pkl", "--sum-positions"], "have none"),
    "a format of another extension": (
        ["convert", "scores.pkl", "x.json"],
        "choose by --format eap_ig",
    ),
    "a model of another shape": (
        ["draw", "gpt2.json", "--model", "bundled", "-o", "x.html"],
        "12 layers",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line_and_an_exit_code(
    case: str, capsys: Printed, model: ct.PatchableModel
) -> None:
    arguments, message = WRONG[case]
    for name in ("text.json", "text.trace", "text.jsonl", "text.csv"):
        Path(name).write_text("hello")
    Path("data.csv").write_text("clean,corrupt\nWhen,and\nWhen,\n")
    scores = scores_of(model, "scores.pkl")
    ct.save_scores({n: s.expand(3, *s.shape).clone() for n, s in scores.items()}, "positions.pkl")
    config = {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False, "d_model": 768}
    Path("gpt2.json").write_text(json.dumps({"cfg": config, "nodes": {}, "edges": {}}))
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("circuit-trace: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["demo", "--top", "0"],
        ["demo", "--top", "x"],
        ["no-such-command"],
        ["draw", "x.json"],
        ["trace"],
        ["trace", "--clean", "x", "--batch", "-1"],
        ["draw", "x", "-o", "y", "--theme", "z"],
        ["circuit", "x.pkl"],
        ["circuit", "x.pkl", "--n-edges", "3", "--threshold", "1"],
        ["explore", "x.trace"],
        ["diff", "x.trace"],
        ["convert", "x.pkl", "y.json", "--groups", "mean"],
    ],
)
def test_what_cannot_be_parsed_exits_with_two_and_the_usage(
    capsys: Printed, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: circuit-trace" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "taught"),
    [
        (["--help"], "circuit-trace convert scores.pt scores.json"),
        (["demo", "--help"], "circuit-trace demo --model gpt2"),
        (["score", "--help"], "circuit-trace score --model gpt2 --data prompts.csv"),
        (["trace", "--help"], '"A5.*->MLP *"'),
        (["show", "--help"], 'show pass.trace --edges "*->A1.0.*"'),
        (["draw", "--help"], "circuit-trace draw scores.json -o circuit.html"),
        (["convert", "--help"], "--format eap_ig | edge_pruning"),
        (["circuit", "--help"], "circuit-trace circuit scores.pkl --n-edges 20"),
        (["faithfulness", "--help"], "faithfulness --scores mine.pkl theirs.json"),
        (["explore", "--help"], "circuit-trace explore pass.trace -o pass.html"),
        (["diff", "--help"], "circuit-trace diff before.trace after.trace"),
    ],
)
def test_help_teaches(capsys: Printed, arguments: list[str], taught: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    assert taught in capsys.readouterr().out


def test_a_reader_that_closes_early_is_no_error(trace: ct.Trace) -> None:
    trace.save("pass.trace")
    command = "import sys; from circuit_trace.cli import main; sys.exit(main())"
    show = subprocess.Popen(
        [sys.executable, "-c", command, "show", "pass.trace", "--edges", "*->*", "--rows", "110"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert show.stdout is not None
    assert show.stderr is not None
    show.stdout.close()
    assert show.wait(timeout=60) == 0
    assert show.stderr.read() == b""
