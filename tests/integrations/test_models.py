"""The bundled model: what it knows, that every version loads the same one, and loading by name."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import socket
import warnings
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
from circuit_trace.errors import CircuitTraceError, InputError
from circuit_trace.integrations import models
from circuit_trace.integrations.models import END_OF_TEXT, UNKNOWN_WORD, load_bundled_model

KINDS = models.available_kinds()

FRAMES = (
    "When {first} and {second} went to the park , {giver} gave a ring to",
    "After {first} and {second} left the library , {giver} handed a book to",
    "While {first} and {second} were at the market , {giver} passed a coin to",
    "Yesterday {first} saw {second} at the station , so {giver} brought a map to",
    "{first} and {second} had fun at the beach . Later {giver} offered a snack to",
    "{first} sat with {second} in the garden until {giver} threw a ball to",
)
PAIRS = (("Mary", "John"), ("Alice", "Bob"), ("Ruth", "Henry"))


def _sentences() -> Iterator[tuple[str, str]]:
    """Yield prompts with their answers: either name first, either one giving."""
    for frame, pair in itertools.product(FRAMES, PAIRS):
        for first, second in (pair, pair[::-1]):
            for giver, answer in (pair, pair[::-1]):
                yield frame.format(first=first, second=second, giver=giver), answer


SENTENCES = tuple(_sentences())
TOP_LOGITS = (10.87348, 2.7112, 2.60754)
"""The three highest after `CLEAN`, as TransformerLens 2.16.1, 3.9.0 and 4.3.0 all computed them."""


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return load_bundled_model(request.param)


def _next_word(model: Any, prompt: str) -> str:
    return model.to_string(model(model.to_tokens(prompt))[0, -1].argmax())


def _logit_difference(model: Any, prompt: str, right: str, wrong: str) -> float:
    logits: Tensor = model(model.to_tokens(prompt))[0, -1]
    return (logits[model.to_single_token(right)] - logits[model.to_single_token(wrong)]).item()


def test_answers_a_table_of_sentences(model: Any) -> None:
    assert len({prompt for prompt, _ in SENTENCES}) == 72
    right = [_next_word(model, prompt) == answer for prompt, answer in SENTENCES]
    assert sum(right) / len(right) >= 0.99


def test_answers_the_prompts_of_the_demo_clearly(model: Any) -> None:
    assert _next_word(model, CLEAN) == ANSWERS[0]
    assert _next_word(model, CORRUPT) == ANSWERS[1]
    assert _logit_difference(model, CLEAN, *ANSWERS) > 4
    assert _logit_difference(model, CORRUPT, *ANSWERS) < -4


def test_layer_0_finds_the_giver_and_layer_1_the_other_name(model: Any) -> None:
    words = [END_OF_TEXT, *CLEAN.split()]
    _, cache = model.run_with_cache(model.to_tokens(CLEAN))
    from_end = [cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1] for layer in (0, 1)]
    answer, giver = words.index(ANSWERS[0]), len(words) - 5
    assert words[giver] == ANSWERS[1]
    assert (from_end[0][:, giver] > 0.4).sum() == 3
    assert (from_end[1][:, answer] > 0.8).sum() == 3


@pytest.mark.skipif(len(KINDS) < 2, reason="this TransformerLens has only one kind of model")
def test_hooked_and_bridge_agree() -> None:
    hooked, bridge = load_bundled_model("hooked"), load_bundled_model("bridge")
    prompts = [prompt for prompt, _ in SENTENCES]
    tokens = hooked.to_tokens(prompts)
    assert torch.equal(tokens, bridge.to_tokens(prompts))
    assert (hooked(tokens) - bridge(tokens)).abs().max() < 1e-4


def test_logits_are_those_of_the_other_versions(model: Any) -> None:
    logits = model(model.to_tokens(CLEAN))[0, -1]
    assert logits.topk(3).values.tolist() == pytest.approx(TOP_LOGITS, abs=1e-4)


@pytest.mark.skipif("bridge" not in KINDS, reason="this TransformerLens has no bridge")
def test_weights_become_the_bridge_s_as_transformer_lens_converts_them() -> None:
    module = "transformer_lens.utilities.tl_checkpoint_conversion"
    if importlib.util.find_spec(module) is None:
        pytest.skip("this TransformerLens has no converter of its own")
    converter = importlib.import_module(module)
    weights = load((files("circuit_trace.demo") / "data" / "model.safetensors").read_bytes())
    expected = converter.convert_tl_checkpoint(weights, load_bundled_model("bridge").cfg)
    actual = models._bridge_weights(weights)
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_tokenizer_round_trip(model: Any) -> None:
    tokens = model.to_tokens(CLEAN)
    assert tokens.shape == (1, 15)
    assert tokens[0, 0] == model.tokenizer.bos_token_id
    assert [model.tokenizer.decode([token]) for token in tokens[0]] == [END_OF_TEXT, *CLEAN.split()]
    assert model.to_string(tokens[0]) == f"{END_OF_TEXT} {CLEAN}"
    assert torch.equal(model.to_tokens(CLEAN.replace(" ,", ",")), tokens)
    assert torch.equal(model.to_tokens(CLEAN, prepend_bos=False), tokens[:, 1:])


def test_tokens_as_words(model: Any) -> None:
    words = model.to_str_tokens(CLEAN)
    if len(words) == 1:
        pytest.skip("to_str_tokens of TransformerLens 2 returns one string with transformers 5")
    assert words == [END_OF_TEXT, *CLEAN.split()]


def test_short_prompts_are_filled_up_on_the_right(model: Any) -> None:
    tokens = model.to_tokens([CLEAN, "Mary and John"])
    assert tokens.shape == (2, 15)
    assert (tokens[:, 0] == model.tokenizer.bos_token_id).all()
    assert (tokens[1, 4:] == model.tokenizer.pad_token_id).all()


def test_words_outside_the_vocabulary(model: Any) -> None:
    tokens = model.to_tokens("Zaphod", prepend_bos=False)[0]
    assert model.to_string(tokens) == UNKNOWN_WORD


def test_config_is_what_the_file_says(model: Any) -> None:
    fields = json.loads((files("circuit_trace.demo") / "data" / "config.json").read_bytes())
    assert {name: getattr(model.cfg, name) for name in fields} == fields
    assert not model.training
    assert {str(weight.device) for weight in model.parameters()} == {"cpu"}


def test_weights_are_below_a_megabyte() -> None:
    assert len((files("circuit_trace.demo") / "data" / "model.safetensors").read_bytes()) < 1e6


@pytest.mark.parametrize("kind", KINDS)
def test_loading_leaves_no_mark(
    kind: models.ModelKind, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_bundled_model(kind)
    assert torch.equal(torch.get_rng_state(), before)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")


def _no_network(*address: Any, **options: Any) -> None:
    raise AssertionError(f"the network was asked for {address}")


def test_load_model_knows_the_bundled_one() -> None:
    model = models.load_model("bundled")
    assert type(model) is type(load_bundled_model())


@pytest.mark.parametrize("name", ["no-such-model", "roneneldan/TinyStories-1M"])
def test_a_model_that_cannot_be_had_offline(name: str) -> None:
    with pytest.raises(CircuitTraceError) as caught:
        models.load_model(name)
    message = str(caught.value)
    assert message.startswith(f"The model {name!r} could not be loaded: ")
    assert message.endswith(
        "Expected 'bundled', which needs no network, or a name such as 'gpt2', which the Hugging "
        "Face hub is asked for."
    )
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.usefixtures("as_a_user")
def test_unknown_kind() -> None:
    with pytest.raises(InputError, match=r"^kind must be 'hooked', 'bridge' or None, got 'hook'$"):
        load_bundled_model("hook")  # pyright: ignore[reportArgumentType]


def test_a_kind_that_this_version_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "available_kinds", lambda: ("bridge",))
    monkeypatch.setattr(models, "version", lambda package: "4.3.0")
    expected = (
        "TransformerLens 4.3.0 cannot build the model as 'hooked'. Use kind='bridge', or "
        "install transformer-lens>=3.9,<4, which has both kinds."
    )
    with pytest.raises(CircuitTraceError, match=f"^{re.escape(expected)}$"):
        load_bundled_model("hooked")
