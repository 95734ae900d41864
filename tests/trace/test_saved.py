"""A trace that was saved and loaded gives the answers that it gave before, with no model at hand."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.demo.prompts import CLEAN as PROMPT
from circuit_trace.demo.prompts import CORRUPT as OTHER_PROMPT
from circuit_trace.plan import SiteOutput
from tests.anatomy.toy import ToyModel
from tests.anatomy.toy import anatomy as toy_anatomy
from tests.models import CASES, HAS_HOOKED, TYPICAL, tokens, wrapped
from tests.visualize.pictures import known_trace

SEQ = 6
CLEAN, CORRUPT, OTHER = tokens(1, seq=SEQ), tokens(2, seq=SEQ), tokens(3, seq=SEQ)
FIRST, NAME = TYPICAL[0], "A0.1->A1.2.Q"
EDGES = {NAME: 0.25, "A0.1->Resid End": -0.5, "MLP 0->Resid End": 0.0, "A1.3->Resid End": 1.0}
TWO_TOKENS = (" Mary", " John")

Make = Callable[[], ct.Trace]


def edges_of(name: str) -> dict[str, float]:
    return {e: mask for e, mask in EDGES.items() if "MLP" not in e or not CASES[name].attn_only}


def a_trace(name: str = FIRST, seq_len: int | None = None, **options: Any) -> ct.Trace:
    asked = {"corrupt": CORRUPT, "edges": edges_of(name)}
    return wrapped(name, seq_len).trace(CLEAN, **(options or asked))


def bundled() -> ct.Trace:
    """One with text: the model that ships, at two prompts."""
    model = ct.wrap(ct.load_model("bundled"), seq_len=15)
    edges = {(14, "A1.0->Resid End"): 0.5, (3, "A0.1->A1.2.Q"): 1.0, (3, "MLP 0->MLP 1"): 0.0}
    return model.trace([PROMPT, OTHER_PROMPT], corrupt=[OTHER_PROMPT, PROMPT], edges=edges)


def reloaded(trace: ct.Trace, folder: Path, **options: Any) -> ct.Trace:
    path = folder / "x.trace"
    trace.save(path, **options)
    return ct.Trace.load(path)


def answers(trace: ct.Trace) -> dict[str, Any]:
    """Everything that a trace says, by name."""
    found: dict[str, Any] = {
        "graph": (trace.graph.srcs, trace.graph.modules, trace.graph.seq_len),
        "size": (trace.batch, trace.seq, repr(trace)),
        "tokens": trace.tokens,
        "strings": [trace.token_strings(element) for element in range(trace.batch)],
        "logits": trace.logits,
        "current": trace.current.stack(),
        "edges": [str(edge) for edge in trace.edges],
        "table": trace.table(batch_idx="mean").to_csv() + trace.table().to_csv(),
        "error": trace.reconstruction_error() if trace.reads else None,
    }
    found |= {f"wrote {name}": tensor for name, tensor in trace.current.items()}
    found |= {f"mask of {name}": mask for name, mask in trace.masks.items()}
    found |= {f"bias {place}": bias for place, bias in enumerate(trace.biases)}
    for place, plan in enumerate(trace.plans):
        if plan.patched is not None:
            found[f"patched {place}"] = plan.patched.stack()
            found[f"ablation {place}"] = plan.patched.ablation, repr(plan.patched)
    for edge in trace.edges:
        flow = trace.edge(edge.name, edge.seq_idx)
        found[f"edge {edge}"] = flow.mask, repr(flow)
        found |= {f"{edge} {w}": getattr(flow, w) for w in ("current", "patched", "received")}
    for name in trace.heads:
        record = trace.head(name)
        found |= {f"{name} {what}": getattr(record, what) for what in record.tensors}
    dest = trace.dest(trace.graph.dests[-1].name)
    return found | {"dest mask": dest.mask, "dest": dest.received}


def check_same(loaded: ct.Trace, trace: ct.Trace, tolerance: float | None = None) -> None:
    """Bit for bit, or numbers within a tolerance."""
    found, expected = answers(loaded), answers(trace)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, Tensor):
            assert found[key].dtype == value.dtype, key
        if tolerance is not None and key in ("table", "error"):
            continue
        if isinstance(value, Tensor) and tolerance is not None:
            assert_close(found[key], value, rtol=tolerance, atol=tolerance, msg=key)
        elif isinstance(value, Tensor):
            assert torch.equal(found[key], value.detach()), key
            assert not found[key].requires_grad
        else:
            assert found[key] == value or (value != value and found[key] != found[key]), key


# --- what is held -------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_len", [None, SEQ])
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_model(name: str, seq_len: int | None, tmp_path: Path) -> None:
    trace = a_trace(name, seq_len)
    check_same(reloaded(trace, tmp_path, factored=True), trace)
    projected = reloaded(trace, tmp_path, factored=False)
    check_same(projected, trace, 1e-4)
    assert projected.reconstruction_error() < 1e-4


def nested() -> ct.Trace:
    model = wrapped(FIRST, SEQ)
    first, second = model.source_outputs(CORRUPT), model.source_outputs(OTHER)
    outer = model.patch(first, edges={NAME: 0.5, "A0.0->MLP 1": 1.0})
    inner = model.patch(second, edges=[(2, NAME), (3, "A0.2->A1.0.V")])
    with torch.no_grad(), outer, inner:
        model(CLEAN)
    return model.last_trace


def learned() -> ct.Trace:
    """Its masks move on after the pass, and it runs with gradients."""
    model = wrapped(FIRST)
    value = torch.tensor(0.5, requires_grad=True)
    with model.patch(model.source_outputs(CORRUPT), edges={NAME: value}):
        model(CLEAN)
    with torch.no_grad():
        value += 1
    return model.last_trace


def mean_of_dataset() -> ct.Trace:
    model = wrapped(FIRST)
    data = [(tokens(seed, seq=SEQ), tokens(seed + 9, seq=SEQ)) for seed in range(3)]
    kind = ct.AblationType.TOKENWISE_MEAN_CLEAN_AND_CORRUPT
    return a_trace(patched=model.source_outputs(data, kind), edges=EDGES)


def of_dtype(dtype: torch.dtype) -> ct.Trace:
    return ct.wrap(CASES[FIRST].build().to(dtype)).trace(CLEAN, corrupt=CORRUPT, edges=EDGES)


def inference_mode() -> ct.Trace:
    with torch.inference_mode():
        return a_trace()


def toy(seq_len: int | None = None) -> ct.Trace:
    """No transformer: no tokens, no weights, no biases."""
    model = ToyModel()
    clean = torch.tensor([[[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]]])
    edges = {"B0.1->Resid End": 1.0, "B0.0->B1.1": 0.5}
    found = ct.wrap(model, anatomy=toy_anatomy(model), seq_len=seq_len)
    return found.trace(clean, corrupt=-clean, edges=edges)


def not_finite() -> ct.Trace:
    trace = a_trace()
    code = trace.current.sites[2].code.clone()
    code[0, 1, 0, :3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    sites = (*trace.current.sites[:2], SiteOutput(code), *trace.current.sites[3:])
    return dataclasses.replace(trace, current=dataclasses.replace(trace.current, sites=sites))


MADE: dict[str, Make] = {
    "only recorded": lambda: wrapped(FIRST).trace(CLEAN),
    "recorded beside a corrupt prompt": lambda: a_trace(corrupt=CORRUPT),
    "how heads attended": lambda: a_trace(corrupt=CORRUPT, edges=EDGES, heads=["A0.1", "A1.*"]),
    "all edges of a node": lambda: a_trace(corrupt=CORRUPT, nodes=["A0.1"]),
    "masks": lambda: a_trace(
        corrupt=CORRUPT, masks={m.name: torch.rand(m.shape) for m in wrapped(FIRST).graph.modules}
    ),
    "nested contexts": nested,
    "masks that learn": learned,
    "mean of a dataset": mean_of_dataset,
    **{
        str(kind): lambda kind=kind: a_trace(corrupt=CORRUPT, edges=EDGES, ablation=kind)
        for kind in (
            ct.AblationType.ZERO,
            ct.AblationType.BATCH_TOKENWISE_MEAN,
            ct.AblationType.BATCH_ALL_TOK_MEAN,
        )
    },
    **{str(dtype): lambda d=dtype: of_dtype(d) for dtype in (torch.bfloat16, torch.float64)},
    "inference mode": inference_mode,
    "toy": toy,
    "toy with positions": lambda: toy(3),
    "heads not split": lambda: wrapped(FIRST, None, False).trace(
        CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.2"]
    ),
    "text": bundled,
}
if HAS_HOOKED:
    MADE["known numbers"] = lambda: known_trace(
        {(1, NAME): 0.5}, SEQ, to_strings=lambda row: list("abcdef")
    )


@pytest.mark.parametrize("kind", MADE)
def test_every_kind_of_pass(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trace = MADE[kind]()
    check_same(reloaded(trace, tmp_path, factored=True), trace)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    trace = not_finite()
    for dtype in (None, torch.float16):
        loaded = reloaded(trace, tmp_path, dtype=dtype, factored=True)
        assert loaded.current["MLP 0"][0, 1, :2].tolist() == [float("inf"), float("-inf")]
        assert loaded.current["MLP 0"][0, 1, 2].isnan()


def test_it_saves_again(tmp_path: Path) -> None:
    trace = bundled()
    once = reloaded(trace, tmp_path, unembed=True)
    twice = reloaded(once, tmp_path, unembed=True)
    check_same(twice, trace)
    assert twice.draw(label="tokens").to_json() == trace.draw(label="tokens").to_json()
    assert twice.table(direction=TWO_TOKENS).equals(trace.table(direction=TWO_TOKENS))


def test_memory_is_shared_as_it_was(tmp_path: Path) -> None:
    """Current and patched outputs are projected by one `W_O`, not by two of the same numbers."""
    loaded = reloaded(nested(), tmp_path, factored=True)
    patched = [plan.patched for plan in loaded.plans if plan.patched is not None]
    assert len(patched) == 2
    for outputs in patched:
        for mine, theirs in zip(loaded.current.sites, outputs.sites, strict=True):
            assert mine.shares_weight(theirs)
            assert (mine.weight is None) == (theirs.weight is None)


@pytest.mark.parametrize("name", TYPICAL)
def test_layouts_are_kept(name: str, tmp_path: Path) -> None:
    """A bridge's `W_O` can be a transposed view, and a product of another layout rounds otherwise."""
    trace = a_trace(name)
    loaded = reloaded(trace, tmp_path, factored=True)
    for mine, theirs in zip(trace.current.sites, loaded.current.sites, strict=True):
        assert mine.code.stride() == theirs.code.stride()
        assert mine.weight is None or mine.weight.stride() == theirs.weight.stride()


def test_it_outlives_its_file(tmp_path: Path) -> None:
    trace = a_trace()
    loaded = reloaded(trace, tmp_path, factored=True)
    (tmp_path / "x.trace").write_bytes(b"\0" * (tmp_path / "x.trace").stat().st_size)
    check_same(loaded, trace)


def test_about(tmp_path: Path) -> None:
    trace = bundled()
    loaded = reloaded(trace, tmp_path)
    assert dataclasses.replace(loaded.about, written=None) == trace.about
    assert loaded.about.config_hash == trace.about.config_hash
    assert loaded.about.written is not None
    assert loaded.about.written[4] == "-"
    assert loaded.about.written.endswith("+00:00"), "UTC"


# --- figures ------------------------------------------------------------------------------------

PICTURES: dict[str, dict[str, Any]] = {
    "across": {},
    "down": {"orientation": "v"},
    "table": {"table": True, "theme": "dark"},
    "tokens": {"label": "tokens"},
    "two tokens": {"direction": TWO_TOKENS, "width": "projection", "table": True},
    "mean": {"batch_idx": "mean", "label": "cosine"},
    "mean of tokens": {"batch_idx": "mean", "label": "tokens"},
    "the other prompt": {"batch_idx": 1, "show_all_seq_pos": True},
    "values": {"label": "values", "width": "received"},
    "delta": {"width": "delta", "layer_spacing": True},
    "a vector": {"direction": torch.ones(64), "label": "projection"},
    "own label": {"label": lambda flow: f"{float(flow.received.norm()):.6f}"},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ct.Trace, ct.Trace]:
    trace = bundled()
    return trace, reloaded(trace, tmp_path_factory.mktemp("saved"), unembed=True)


@pytest.mark.parametrize("picture", PICTURES)
def test_a_figure(picture: str, both: tuple[ct.Trace, ct.Trace]) -> None:
    before, after = (trace.draw(**PICTURES[picture]).to_json() for trace in both)
    assert after == before


def test_other_views(both: tuple[ct.Trace, ct.Trace]) -> None:
    trace, loaded = both
    for options in ({}, {"direction": TWO_TOKENS}, {"batch_idx": "mean"}):
        assert loaded.explore(**options).html == trace.explore(**options).html
    assert loaded._repr_mimebundle_().keys() == trace._repr_mimebundle_().keys()
    difference = ct.draw_difference(trace, loaded)
    assert difference.to_json() == ct.draw_difference(trace, trace).to_json()
    columns = {"direction": TWO_TOKENS, "n_tokens": 4, "batch_idx": "mean"}
    assert loaded.table(**columns).equals(trace.table(**columns))


def test_a_direction_of_tokens_by_id(both: tuple[ct.Trace, ct.Trace]) -> None:
    trace, loaded = both
    assert loaded.table(direction=(5, 6)).equals(trace.table(direction=(5, 6)))
    with pytest.raises(ct.InputError, match=r"no token 90; this model knows 0 to 89"):
        loaded.table(direction=(5, 90))


@pytest.mark.parametrize("text", ["Mary John", "", "Zoë"])
def test_text_that_is_no_token(text: str, both: tuple[ct.Trace, ct.Trace]) -> None:
    for trace in both:
        with pytest.raises(ct.InputError):
            trace.table(direction=(text, " John"))
    with pytest.raises(ct.InputError, match="is no single token of the vocabulary that was saved"):
        both[1].table(direction=(text, " John"))


@pytest.mark.parametrize(
    "options", [{"label": "tokens"}, {"direction": TWO_TOKENS}, {"direction": (5, 6)}]
)
def test_tokens_that_were_not_saved(options: dict[str, Any], tmp_path: Path) -> None:
    loaded = reloaded(bundled(), tmp_path)
    with pytest.raises(ct.FigureError, match=r"saved without the unembedding.*unembed=True"):
        loaded.draw(**options)
    with pytest.raises(ct.InputError, match=r"saved without the unembedding.*unembed=True"):
        loaded.save(tmp_path / "y.trace", unembed=True)
    assert not (tmp_path / "y.trace").exists()
    assert loaded.to_strings is not None
    with pytest.raises(ct.InputError, match=r"strings of its own tokens only.*unembed=True"):
        loaded.to_strings(torch.tensor([3]))


def test_without_a_tokenizer(tmp_path: Path) -> None:
    trace = a_trace()
    loaded = reloaded(trace, tmp_path, unembed=True, factored=True)
    assert loaded.table(n_tokens=3, direction=(3, 7)).equals(
        trace.table(n_tokens=3, direction=(3, 7))
    )
    with pytest.raises(ct.InputError, match="no tokenizer: give its id"):
        loaded.table(direction=TWO_TOKENS)


def test_a_model_without_unembedding(tmp_path: Path) -> None:
    with pytest.raises(ct.InputError, match="does not say how its residual stream becomes logits"):
        toy().save(tmp_path / "x.trace", unembed=True)


def test_a_vocabulary_that_cannot_be_had(tmp_path: Path) -> None:
    trace = dataclasses.replace(
        a_trace(), to_strings=lambda row: ["abcdefghijk"[one] for one in row]
    )
    trace = dataclasses.replace(trace, tokens=torch.zeros_like(CLEAN))
    with pytest.raises(ct.InputError, match=r"23 tokens, but they cannot be had: IndexError"):
        trace.save(tmp_path / "x.trace", unembed=True)


NO_LENS = """
import hashlib, sys
for name in ("transformer_lens", "transformers"):
    sys.modules[name] = None  # importing it fails
import circuit_trace as ct
trace = ct.Trace.load(sys.argv[1])
assert trace.table().shape[0] == 3 and trace.reconstruction_error() < 1e-5
figure = trace.draw(label="tokens")
print(hashlib.sha256(figure.to_json().encode()).hexdigest())
"""


def test_another_process_without_transformer_lens(tmp_path: Path) -> None:
    trace = bundled()
    trace.save(tmp_path / "x.trace", unembed=True)
    done = subprocess.run(
        [sys.executable, "-c", NO_LENS, str(tmp_path / "x.trace")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    here = hashlib.sha256(trace.draw(label="tokens").to_json().encode()).hexdigest()
    assert done.stdout.strip() == here


# --- options ------------------------------------------------------------------------------------


def tensors_of(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_logits_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.trace"
    a_trace().save(path)
    assert "logits" in tensors_of(path)
    a_trace().save(path, logits=False)
    assert "logits" not in tensors_of(path)
    assert ct.Trace.load(path).logits is None


@pytest.mark.parametrize("n_tokens", [2, SEQ])
@pytest.mark.parametrize("factored", [True, False, None])
def test_heads_are_stored_as_asked_or_as_is_smaller(
    factored: bool | None, n_tokens: int, tmp_path: Path
) -> None:
    """A head is 4 wide, the stream 10: 4 codes of 2 × 2 tokens are smaller than `W_O`."""
    clean, corrupt = tokens(1, seq=n_tokens), tokens(2, seq=n_tokens)
    trace = wrapped("hooked LN" if "hooked LN" in CASES else FIRST).trace(clean, corrupt=corrupt)
    sizes = {}
    for way in (True, False, None):
        trace.save(tmp_path / "x.trace", factored=way)
        sizes[way] = sum(one.nbytes for one in tensors_of(tmp_path / "x.trace").values())
    assert sizes[None] == min(sizes.values())
    loaded = reloaded(trace, tmp_path, factored=factored)
    is_factored = factored if factored is not None else sizes[True] < sizes[False]
    assert (loaded.current.sites[1].weight is not None) == is_factored
    check_same(loaded, trace, 1e-5)


def test_one_weight_is_stored_once(tmp_path: Path) -> None:
    """Though current and patched outputs share it, and also where a model makes it anew each time."""
    for name in TYPICAL:
        trace = a_trace(name)
        sites = trace.current.sites
        copies = [dataclasses.replace(site, weight=_copy(site.weight)) for site in sites]
        trace = dataclasses.replace(
            trace, current=dataclasses.replace(trace.current, sites=tuple(copies))
        )
        trace.save(tmp_path / "x.trace", factored=True)
        stored = [one for one in tensors_of(tmp_path / "x.trace") if one.endswith("weight")]
        assert len(stored) == sum(site.weight is not None for site in sites)


def _copy(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach().clone()


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float64])
def test_half_the_room(
    model_dtype: torch.dtype, dtype: torch.dtype, tolerance: float, factored: bool, tmp_path: Path
) -> None:
    trace = of_dtype(model_dtype)
    path = tmp_path / "x.trace"
    loaded = reloaded(trace, tmp_path, dtype=dtype, factored=factored)
    narrow = {name: one.dtype for name, one in tensors_of(path).items()}
    assert narrow["logits"] == narrow["current, A0.0, code"] == narrow["bias 1"] == dtype
    assert narrow["tokens"] == torch.int64
    assert narrow["plan 0, mask of blocks.1.hook_q_input"] == torch.float32
    assert loaded.current["A0.1"].dtype == model_dtype
    assert loaded.logits is not None
    assert loaded.logits.dtype == model_dtype
    assert all(torch.equal(mask, trace.masks[name]) for name, mask in loaded.masks.items())
    whole, error = trace.current.stack(), (loaded.current.stack() - trace.current.stack()).norm()
    assert 0 < error / whole.norm() < tolerance
    assert loaded.reconstruction_error() < 10 * tolerance


def test_what_is_narrow_already_stays(tmp_path: Path) -> None:
    trace = of_dtype(torch.bfloat16)
    check_same(reloaded(trace, tmp_path, dtype=torch.float16, factored=True), trace)


def test_a_number_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    trace = a_trace()
    code = trace.current.sites[2].code.clone()
    code[0, 1, 0, 0] = -7e4
    sites = (*trace.current.sites[:2], SiteOutput(code), *trace.current.sites[3:])
    trace = dataclasses.replace(trace, current=dataclasses.replace(trace.current, sites=sites))
    with pytest.raises(ct.InputError) as caught:
        trace.save(tmp_path / "x.trace", dtype=torch.float16)
    assert str(caught.value) == (
        "'current, MLP 0, code' of this trace goes up to 7e+04, but torch.float16 ends at 6.55e+04: "
        "it would become infinite. Save it with dtype=torch.bfloat16, which reaches as far as "
        "float32, or without dtype=."
    )
    assert list(tmp_path.iterdir()) == []
    loaded = reloaded(trace, tmp_path, dtype=torch.bfloat16)
    assert loaded.current["MLP 0"][0, 1, 0] == pytest.approx(-7e4, rel=1e-2)


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": torch.float32}, r"dtype must be torch\.float16, torch\.bfloat16 or None"),
    "int8": ({"dtype": torch.int8}, "dtype must be"),
    "text": ({"dtype": "float16"}, "dtype must be .* got 'float16'"),
    "factored": ({"factored": "yes"}, "factored must be one of .* got 'yes'"),
    "logits": ({"logits": 1}, "logits must be one of .* got 1"),
    "unembed": ({"unembed": None}, "unembed must be one of .* got None"),
}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options(case: str, tmp_path: Path) -> None:
    options, message = WRONG_OPTIONS[case]
    with pytest.raises(ct.InputError, match=message):
        a_trace().save(tmp_path / "x.trace", **options)
    assert list(tmp_path.iterdir()) == []


# --- what is not saved --------------------------------------------------------------------------


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    """A step of training after the pass: what heads wrote is gone, and the old file stays."""
    hooked = CASES[FIRST].build()
    trace = ct.wrap(hooked).trace(CLEAN)
    path = tmp_path / "x.trace"
    trace.save(path)
    before = path.read_bytes()
    with torch.no_grad():
        for weight in hooked.parameters():
            weight.mul_(1.01)
    for options in ({}, {"factored": True}, {"factored": False}, {"unembed": True}):
        with pytest.raises(ct.InputError, match="weights were changed in place"):
            trace.save(path, **options)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_changed_unembedding_is_refused_where_it_is_saved(tmp_path: Path) -> None:
    hooked = CASES[FIRST].build()
    trace = ct.wrap(hooked).trace(CLEAN)
    with torch.no_grad():
        for weight in hooked.unembed.parameters():
            weight.mul_(1.5)
    with pytest.raises(ct.InputError, match="give other logits"):
        trace.save(tmp_path / "x.trace", unembed=True)
    assert list(tmp_path.iterdir()) == []


def test_changed_logits_are_refused(tmp_path: Path) -> None:
    trace = a_trace()
    assert trace.logits is not None
    trace.logits.add_(1)
    with pytest.raises(ct.InputError, match="logits that this pass returned were changed"):
        trace.save(tmp_path / "x.trace")
    trace.save(tmp_path / "x.trace", logits=False)
    assert ct.Trace.load(tmp_path / "x.trace").logits is None


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    trace = dataclasses.replace(a_trace(), to_strings=lambda row: ["too", "few"])
    with pytest.raises(ct.InputError) as caught:
        trace.save(tmp_path / "x.trace")
    assert str(caught.value) == (
        "This trace cannot be saved. The file's record.token_strings[0] is ['too', 'few']: expected "
        "a list of 6 to 6 entries."
    )
    assert list(tmp_path.iterdir()) == []


def test_more_text_than_there_is_room_for(tmp_path: Path) -> None:
    long = "x" * 10_000_000
    trace = dataclasses.replace(a_trace(), to_strings=lambda row: [long] * len(row))
    with pytest.raises(ct.InputError, match=r"strings of its tokens take 120 MB, .* 100 MB"):
        trace.save(tmp_path / "x.trace")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("path", [None, 3, "a\0b", ["x.trace"]])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(
        ct.InputError, match=r"^path must (be a path such as 'x\.trace'|not hold a zero character)"
    ):
        a_trace().save(path)
    with pytest.raises(
        ct.InputError, match=r"^path must (be a path such as 'x\.trace'|not hold a zero character)"
    ):
        ct.Trace.load(path)


def test_paths(tmp_path: Path) -> None:
    trace = a_trace()
    for path in (str(tmp_path / "new" / "deep" / "x"), tmp_path / "x.trace"):
        trace.save(path)
        check_same(ct.Trace.load(path), trace, 1e-5)
    for path, message in (
        (tmp_path / "new", "Is a directory"),
        (tmp_path / "x.trace" / "y", "Not a directory|File exists"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(ct.InputError, match=f"Cannot write .*({message})"):
            trace.save(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["new", "x.trace"]
