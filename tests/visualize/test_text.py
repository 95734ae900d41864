"""Text in labels: escaped, short, and never the dump of a tensor."""

from __future__ import annotations

import html
import math

import pytest

from circuit_trace.visualize.text import (
    LONGEST_TOKEN,
    escape,
    escape_name,
    mask_text,
    number,
    text_size,
    token_label,
    vector_text,
)
from tests.visualize.pictures import NASTY, shows

MARKUP = "<>&$"


@pytest.mark.parametrize("token", NASTY)
def test_a_token_shows_as_it_is(token: str) -> None:
    label = token_label(token)
    assert shows(html.unescape(label), token)
    assert not set(
        label.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "").replace("&#36;", "")
    ) & set(MARKUP)


@pytest.mark.parametrize("text", [" the", "naïve", "漢字", "🤖", "é", "—", "“quoted”", "1 < 2 > 0"])
def test_harmless_text_is_kept(text: str) -> None:
    assert html.unescape(escape(text)) == text


@pytest.mark.parametrize("text", ["👩‍👩‍👧", "❤️", "🏳️‍🌈", "a\u00a0b", "می‌خواهم", "क्‍ष"])
def test_joined_emoji_and_scripts_with_joiners_are_kept(text: str) -> None:
    shown = html.unescape(escape(text))
    assert "�" not in shown
    assert shown.replace(" ", "\u00a0") == text.replace(" ", "\u00a0")


@pytest.mark.parametrize("char", ["\x00", "\x1b", "\x7f", "\u202e", "\u2066", "\ud800"])
def test_control_characters_become_visible(char: str) -> None:
    """Among them those that turn the direction of what follows."""
    assert escape(f"a{char}b") == "a�b"


def test_the_arrow_of_a_name_stays() -> None:
    assert escape_name("A0.1->A1.2.Q") == "A0.1->A1.2.Q"
    assert escape_name("<b>->MLP 0") == "&lt;b>->MLP 0"


@pytest.mark.parametrize(("token", "label"), [("", "∅"), (" ", "␣"), ("   ", "␣␣␣"), (" a", " a")])
def test_blank_tokens_are_visible(token: str, label: str) -> None:
    assert token_label(token) == label


def test_long_tokens_are_cut_before_they_are_escaped() -> None:
    assert token_label("<" * 300) == "&lt;" * (LONGEST_TOKEN - 1) + "…"
    assert token_label("x" * LONGEST_TOKEN) == "x" * LONGEST_TOKEN
    assert set(token_label(" " * 300)) == {"␣"}
    assert len(token_label(" " * 300)) <= LONGEST_TOKEN


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "1"), (2.0 / 3, "0.667"), (-12.345, "-12.3"),
        (1e-9, "1e-09"), (12345.6, "12346"), (-1500.2, "-1500"), (1e6, "1e+06"),
        (math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"), (-0.0, "0.00"), (1.0, "1.00"), (-0.25, "-0.25"), (0.01, "0.01"),
        (0.0042, "0.0042"), (-0.00001234, "-1.2e-05"), (123.456, "123.46"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_masks_have_two_decimals(value: float, text: str) -> None:
    assert mask_text(value) == text


def test_a_vector_shows_its_first_values() -> None:
    assert vector_text([0.5, -1.25], 2) == "[0.5, -1.25]"
    assert vector_text([0.5, -1.25], 3) == "[0.5, -1.25, …]"
    assert vector_text([math.nan, math.inf], 2) == "[nan, inf]"


def test_sizes_are_of_the_text_that_shows() -> None:
    assert text_size("&lt;b&gt;", 10.0) == text_size("xbx", 10.0)
    assert text_size("longer", 10.0) > text_size("short", 10.0)
