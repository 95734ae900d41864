"""Text inside of other languages' quotes comes out as it went in."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from circuit_trace.text import dot_text, mermaid_text, plain_of_mermaid


@given(st.text())
def test_mermaid(text: str) -> None:
    quoted = mermaid_text(text)
    assert plain_of_mermaid(quoted) == text
    assert not set(quoted) & set('"<>%`')


@given(st.text())
def test_dot(text: str) -> None:
    quoted = dot_text(text)
    assert re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL) == text
    assert '"' not in quoted.replace("\\\\", "").replace('\\"', "")
