"""Errors in the words of the shell: what is groups='sum' in Python is --groups sum here."""

from __future__ import annotations

import re

FLAGS = {
    name: "--" + name.replace("_", "-")
    for name in (
        "ablation", "answers", "by", "clean", "corrupt", "direction", "edges", "format", "fraction",
        "groups", "heads", "in_graph", "layer_spacing", "max_edges", "method", "metric", "model",
        "n_edges", "nodes", "orientation", "page_width", "patch", "resume", "scores", "select", "sizes",
        "steps", "table", "theme", "threshold",
    )
}  # fmt: skip
FLAGS |= {
    "batch_idx": "--batch",
    "circuit": "--choose",
    "file_path": "-o",
    "masks": "--scores",
    "n_tokens": "--tokens",
    "score_threshold": "--threshold",
}
"""What options of functions are called on the command line."""

NAMES = "|".join(sorted(FLAGS, key=len, reverse=True))

SENTENCES = (
    (
        r"\{name: \(s\.abs\(\) >= ([\d.]+)\)\.float\(\) for .* scores\.items\(\)\}",
        r"--threshold \1",
    ),
    (
        r"Sum them over positions first, \{name: s\.sum\(0\) for .*",
        "Sum them over positions first: circuit-trace convert --sum-positions.",
    ),
    (r"\bwith trace\.save\(path, unembed=True\).*", "by circuit-trace trace --unembed."),
    (
        r"Scores of edges are read by ct\.load_scores, traces by ct\.Trace\.load\.",
        "Scores of edges are for circuit-trace draw, circuit and convert; traces for show and explore.",
    ),
    (r"\bprune=False\b", "--no-prune"),
    (r"\blog=False\b", "--linear"),
)
"""What Python says otherwise than by an option."""


def in_shell_words(text: str) -> str:
    """A message for a reader who types commands, on one line.

    >>> in_shell_words("Several tools write .json: choose by format='eap_ig' or format='edge_pruning'.")
    'Several tools write .json: choose by --format eap_ig or --format edge_pruning.'
    >>> in_shell_words("batch_idx=3 is outside the traced batch: expected 0 to 0.")
    '--batch 3 is outside the traced batch: expected 0 to 0.'
    """
    text = " ".join(text.split("\n"))
    for python, shell in SENTENCES:
        text = re.sub(python, shell, text)
    text = re.sub(
        rf"\b({NAMES})=(?:'([^']*)'|\"([^\"]*)\"|(True)\b|(None)\b|([\w.-]*\w))?", _flag, text
    )
    return re.sub(rf"^({NAMES})(?= must\b)", lambda found: FLAGS[found[1]], text)


def _flag(found: re.Match[str]) -> str:
    name, single, double, _true, none, bare = found.groups()
    value = next((one for one in (single, double, bare) if one is not None), None)
    flag = FLAGS[name]
    if none:
        return f"no {flag}"
    return flag if value is None else f"{flag} {value}"
