"""auto-circuit's scripts and names on our engine, under every TransformerLens."""

from __future__ import annotations

import copy
import doctest
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import circuit_trace as ct
from circuit_trace.demo.prompts import CLEAN, CORRUPT
from circuit_trace.integrations import auto_circuit as ac
from circuit_trace.integrations.auto_circuit import load as ac_load
from circuit_trace.integrations.models import available_kinds, load_bundled_model
from tests.footprint import footprint
from tests.integrations.auto_circuit_scripts import (
    CACHED_PREFIX,
    SCRIPTS,
    fingerprint,
    golden,
    run,
    with_our_imports,
    write_dataset,
)
from tests.models import CASES, HAS_BRIDGE, HAS_HOOKED, shared, tokens

KINDS = available_kinds()
PAGE = Path(ct.__file__).parents[1] / "integrations" / "AUTO_CIRCUIT.md"
needs_bridge = pytest.mark.skipif(not HAS_BRIDGE, reason="TransformerLens 2 has no bridge")
needs_hooked = pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has bridges alone")


def patchable(kind: str | None = None, **options: Any) -> ac.PatchableModel:
    options = {"factorized": True, "separate_qkv": True, **options}
    return ac.patchable_model(load_bundled_model(kind), **options)  # pyright: ignore


@pytest.fixture(scope="module")
def model() -> ac.PatchableModel:
    """One model for tests that set its masks themselves."""
    return patchable()


def prompts(model: Any) -> tuple[Tensor, Tensor]:
    return model.to_tokens(CLEAN), model.to_tokens(CORRUPT)


@pytest.mark.filterwarnings("ignore::circuit_trace.MaskWarning")  # beyond 0 to 1 on purpose
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_computes_what_auto_circuit_does(name: str, kind: Any, tmp_path: Path) -> None:
    if "tail_divergence" in SCRIPTS[name] and kind == "bridge":
        pytest.skip(
            "a bridge has no cache of a prefix: see test_a_prefix_needs_a_hooked_transformer"
        )
    script = with_our_imports(SCRIPTS[name])
    assert "from auto_circuit" not in script
    found = run(script, load_bundled_model(kind), write_dataset(tmp_path / "prompts.json"))
    assert fingerprint(found) == pytest.approx(golden(name), rel=1e-4, abs=1e-4)


@needs_bridge
def test_a_prefix_needs_a_hooked_transformer(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "prompts.json")
    with pytest.raises(
        ct.InputError, match=r"keeps a prefix in HookedTransformer's cache; this is a T"
    ):
        run(with_our_imports(CACHED_PREFIX), load_bundled_model("bridge"), dataset)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_stays_as_it_was(kind: Any) -> None:
    tl_model = load_bundled_model(kind)
    clean, corrupt = prompts(tl_model)
    with torch.no_grad():
        tl_model(clean)
    before = footprint(tl_model)
    model = ac.patchable_model(tl_model, True, separate_qkv=True)
    with torch.no_grad(), ac.patch_mode(model, ac.src_ablations(model, corrupt), ["MLP 0->MLP 1"]):
        model(clean)
    with pytest.raises(ZeroDivisionError), ac.patch_mode(model, ac.src_ablations(model, corrupt)):
        _ = 1 / 0
    assert footprint(tl_model) == before
    assert model.open_patch is None


def test_source_outputs_are_patched_in_like_their_tensor(model: ac.PatchableModel) -> None:
    clean, corrupt = prompts(model)
    outputs = model.source_outputs(corrupt)
    logits = []
    for patched in (outputs, outputs.stack(), ac.src_ablations(model, corrupt)):
        with torch.no_grad(), ac.patch_mode(model, patched, {"A0.1->A1.0.K", "MLP 0->Resid End"}):
            logits.append(model(clean))
    assert_close(logits[0], logits[1])
    assert_close(logits[1], logits[2], rtol=0, atol=0)
    assert not torch.allclose(logits[0], model(clean))
    expected = model.trace(clean, patched=outputs, edges=["A0.1->A1.0.K", "MLP 0->Resid End"])
    assert_close(logits[0], expected.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_by_another_method_uses_the_masks_too(kind: Any) -> None:
    model = patchable(kind)
    clean, corrupt = prompts(model)
    with torch.no_grad(), ac.patch_mode(model, ac.src_ablations(model, corrupt)):
        ac.set_all_masks(model, 1.0)
        logits = model.run_with_hooks(clean, fwd_hooks=[])
    assert_close(logits, model(corrupt))


@needs_bridge
def test_a_bare_bridge_run_by_another_method_after_masks_changed_is_refused() -> None:
    model = patchable("bridge")
    clean, corrupt = prompts(model)
    with torch.no_grad(), ac.patch_mode(model, ac.src_ablations(model, corrupt)):
        model.wrapped_model.run_with_cache(clean)
        ac.set_all_masks(model, 1.0)
        with pytest.raises(ct.InputError, match="bare model was run by another method than a call"):
            model.wrapped_model.run_with_cache(clean)
        logits = model(clean)
    assert_close(logits, model(corrupt))


@pytest.mark.filterwarnings("ignore::circuit_trace.MaskWarning")  # beyond 0 to 1 on purpose
def test_gradients_flow_to_the_masks_as_they_are_in_each_pass(model: ac.PatchableModel) -> None:
    clean, corrupt = prompts(model)
    edge = model.edge_name_dict[None]["MLP 0->Resid End"]
    outputs = ac.src_ablations(model, corrupt)

    def value_at(mask: float) -> float:
        masks = model.circuit_prune_scores(edge_dict={edge: mask})
        return model.trace(clean, corrupt=corrupt, masks=masks).logits[0, -1, 42].item()

    with ac.train_mask_mode(model) as masks, ac.patch_mode(model, outputs, []):
        mask = masks[edge.dest.module_name]
        for value in (0.0, 0.7):
            mask.data[edge.patch_idx] = value
            mask.grad = None
            logit = model(clean)[0, -1, 42]
            logit.backward()
            assert mask.grad is not None
            slope = (value_at(value + 0.01) - value_at(value - 0.01)) / 0.02
            assert logit.item() == pytest.approx(value_at(value), rel=1e-4)
            assert mask.grad[edge.patch_idx].item() == pytest.approx(slope, rel=2e-2)
            with torch.no_grad():
                assert_close(model(clean)[0, -1, 42], logit.detach())
    assert mask.requires_grad is False


def test_a_copy_is_patched_by_its_own_masks(model: ac.PatchableModel) -> None:
    clean, corrupt = prompts(model)
    ac.set_all_masks(model, 0.0)
    twin = copy.deepcopy(model)
    ac.set_all_masks(twin, 1.0)
    assert twin.wrapped_model is twin.engine.wrapped_model is not model.wrapped_model
    with torch.no_grad(), ac.patch_mode(twin, ac.src_ablations(twin, corrupt)):
        assert_close(twin(clean), model(corrupt))
        assert_close(model(clean), model.wrapped_model(clean))
    assert twin.eval() is twin


@needs_hooked
def test_key_value_heads_have_one_input_each() -> None:
    model = ac.patchable_model(shared("hooked grouped"), True, separate_qkv=True)
    names = model.edge_name_dict[None]
    assert names["A0.3->A1.1.K"].patch_idx == (1, 4)
    assert [d.name for d in model.dests if d.name.endswith("V")] == [
        "A0.0.V",
        "A0.1.V",
        "A1.0.V",
        "A1.1.V",
    ]
    with pytest.raises(ct.EdgeError, match=r"Unknown destination 'A1.3.K'"):
        names["A0.3->A1.3.K"]
    with pytest.raises(ct.AnatomyError, match="separate_qkv"):
        ac.patchable_model(shared("hooked grouped"), True, separate_qkv=False)


@pytest.mark.parametrize("name", [name for name in CASES if "parallel" in name or "NeoX" in name])
def test_an_edge_leads_to_a_higher_layer_in_parallel_blocks_too(name: str) -> None:
    model = ac.patchable_model(shared(name), True, separate_qkv=True)
    pairs = {(s.name, d.name) for s in model.srcs for d in model.dests if s.layer < d.layer}
    assert pairs == {(edge.src.name, edge.dest.name) for edge in model.edges}


def test_nodes_and_edges_are_sets_in_order() -> None:
    model = patchable(seq_len=3)
    edges = model.edges
    first = edges.copy().intersection(model.edge_dict[0])
    assert len(first) == len(model.edge_dict[0]) == model.n_edges // 3 == len(edges) // 3
    assert [edge.seq_idx for edge in model.edge_dict[2][:2]] == [2, 2]
    assert len(edges - first) == len(edges.difference(first)) == len(edges) - len(first)
    assert first <= edges
    assert first & edges == first == edges & first
    assert "MLP 0->MLP 1" not in edges  # as in a set of edges
    assert edges.union({1}) == {*edges, 1}
    assert next(iter(model.srcs)).name == "Resid Start"
    assert repr(model.srcs) == "<11 in order: Resid Start, A0.0, A0.1, …>"
    names = model.edge_name_dict[1]
    assert list(names)[:1] == ["Resid Start->A0.0.Q"]
    assert len(names) == len(set(names)) == len(first)
    assert repr(names["A0.1->MLP 1"]) == str(names["A0.1->MLP 1"]) == "A0.1->MLP 1"
    assert "Edges" in repr(model.edge_dict[1])


def test_options_that_may_be_left_out() -> None:
    left_out = patchable(separate_qkv=None, kv_caches=None)
    assert (left_out.separate_qkv, left_out.kv_caches) == (True, None)
    assert "A0.0->A1.0.Q" in left_out.edge_name_dict[None]


def test_new_and_old_api_work_on_one_model(model: ac.PatchableModel) -> None:
    clean, corrupt = prompts(model)
    edge = model.edge_name_dict[None]["A1.0->Resid End"]
    trace = model.trace(clean, corrupt=corrupt, edges={edge: 0.5})
    assert trace.edge(edge.name).mask == 0.5
    assert model.last_trace is trace
    assert repr(model) == repr(model.engine)
    assert model.blocks is model.wrapped_model.blocks
    wrapper = edge.dest.module(model)
    assert "blocks.1.hook_resid_post" in repr(wrapper)
    assert wrapper in model.dest_wrappers
    assert ac.module_by_name(model, "blocks.1.hook_mlp_in").patch_mask.shape == (10,)
    assert ac.module_by_name(model, "blocks.0") is model.blocks[0]
    assert ac.repo_path_to_abs_path("a/b.json") == Path.cwd() / "a" / "b.json"


def test_a_live_figure_shows_the_pass_and_its_masks(model: ac.PatchableModel) -> None:
    clean, corrupt = prompts(model)
    with ac.patch_mode(model, ac.src_ablations(model, corrupt), ["MLP 0->Resid End"]):
        model(clean)
    drawn = ac.draw_seq_graph(model, display_ipython=False)
    (label,) = [label for label in drawn.data[0].link.label if label]
    assert label.startswith("MLP 0->Resid End<br>")
    diagram, n_layers = ac.net_viz(model, model.edges, None, (0, 1))
    assert (n_layers > 0, diagram.link.label[0]) == (True, label)


def test_the_loader_of_a_model_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    given = load_bundled_model(KINDS[0])
    modes = []
    monkeypatch.setattr(ac_load, "load_model", lambda name: given)
    monkeypatch.setattr(
        type(given), "enable_compatibility_mode", lambda _, **o: modes.append(o), False
    )
    found = ac.load_tl_model("gpt2", "cpu")
    assert found is given
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert modes == ([{"disable_warnings": True}] if KINDS == ("bridge",) else [])


@needs_bridge
def test_a_bridge_in_compatibility_mode_is_patched_like_a_hooked_transformer() -> None:
    bridge: Any = CASES["bridge GPT-2"].build()
    clean, corrupt = tokens(1), tokens(2)
    plain = ac.patchable_model(CASES["bridge GPT-2"].build(), True, separate_qkv=True)
    bridge.enable_compatibility_mode(disable_warnings=True)
    model = ac.patchable_model(bridge, True, separate_qkv=True)
    differences = []
    for one in (plain, model):
        outputs = ac.src_ablations(one, corrupt)
        with torch.no_grad(), ac.patch_mode(one, outputs, ["A0.1->A1.2.Q", "MLP 0->Resid End"]):
            logprobs = one(clean).log_softmax(-1)
        differences.append(logprobs)
    assert_close(differences[0], differences[1], rtol=1e-4, atol=1e-4)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of code of the migration page, one after the other."""
    write_dataset(tmp_path / "prompts.json")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "circuit.html").exists()


def test_the_page_names_what_there_is(model: ac.PatchableModel) -> None:
    text = PAGE.read_text()
    assert len(text.splitlines()) <= 100
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    names = {name for row in rows for name in re.findall(r"`(?:\w+\.)?(\w+)(?:\(.*?\))?`", row)}
    edge = next(iter(model.edges))
    known = {*vars(ac), *dir(model), *vars(model), *dir(edge)}
    assert names - known == set()
    assert len(names) > 20


@pytest.mark.parametrize(
    "module", [ac, *(m for m in vars(ac).values() if getattr(m, "__package__", "") == ac.__name__)]
)
def test_the_docstrings_examples(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
