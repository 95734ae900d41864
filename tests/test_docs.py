"""The pages of documentation, tried: their code runs and gives what they say, their links lead somewhere.

The blocks of a page run in order, in one namespace and one empty folder:

- ```` ```python ```` is executed. After an expression, `# -> text` says what it is or prints.
- ```` ```sh ```` holds commands: `circuit-trace …` runs, `make …` must be a target of the Makefile.
- ```` ```text ```` right after one of them is what it printed, or the error in which it ends; `...`
  stands for anything.
- `<!-- not run: why -->` on the line above keeps a block from being run; `NOT_RUN` lists all such.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import circuit_trace as ct
from circuit_trace import cli
from tests.browser import browser_or_skip
from tests.integrations.auto_circuit_scripts import write_dataset

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "integrations/AUTO_CIRCUIT.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]

NOT_RUN = {
    ("README.md", "installs packages"),
    ("CONTRIBUTING.md", "runs pytest within pytest"),
    ("integrations/AUTO_CIRCUIT.md", "edits a script of yours"),
    ("docs/models.md", "part of a pyproject.toml"),
    ("docs/trace.md", "needs a network"),
}
"""Every block that is not run, by its page and the reason given there."""

FENCE = re.compile(
    r"^(?:<!-- (?P<remark>.*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SAYS = re.compile(r"#\s*->\s*(.*)$")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
PICTURE = re.compile(r"\.(png|svg|pdf)\b")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block: the line that it begins at, and what stands right after it as its output."""

    language: str
    code: str
    line: int
    remark: str | None
    printed: str | None


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> Iterator[Block]:
    text = text_of(page)
    fences = list(FENCE.finditer(text))
    for number, found in enumerate(fences):
        after = fences[number + 1] if number + 1 < len(fences) else None
        is_output = (
            after is not None
            and after["language"] == "text"
            and not text[found.end() : after.start()].strip()
        )
        line = text.count("\n", 0, found.start("code")) + 1
        printed = after["code"] if after is not None and is_output else None
        yield Block(found["language"], found["code"], line, found["remark"], printed)


def statements(block: Block, page: str) -> Iterator[tuple[Any, str | None]]:
    """Each statement, compiled, and what a remark behind it says that it gives."""
    tree = ast.parse(block.code)
    lines = block.code.splitlines()
    inside = {*filter(SAYS.search, lines)} - {
        lines[(node.end_lineno or 0) - 1] for node in tree.body
    }
    assert not inside, f"{page}: only a whole statement has a value: {inside}"
    ast.increment_lineno(tree, block.line - 1)
    for node in tree.body:
        assert node.end_lineno is not None
        says = SAYS.search(lines[node.end_lineno - block.line])
        if says is None:
            yield compile(ast.Module([node], []), page, "exec"), None
        else:
            assert isinstance(node, ast.Expr), (
                f"{page}:{node.lineno}: only an expression has a value"
            )
            yield compile(ast.Expression(node.value), page, "eval"), says[1]


def check(expected: str, got: str, where: str) -> None:
    is_right = doctest.OutputChecker().check_output(expected, got, FLAGS)
    assert is_right, f"{where} says\n{expected}\nbut it is\n{got}"


def run_python(block: Block, names: dict[str, Any], page: str) -> str:
    """What a block prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for code, says in statements(block, page):
            before = out.tell()
            value = eval(code, names)
            if says is not None:
                got = out.getvalue()[before:] if value is None else repr(value)
                check(says + "\n", got.rstrip("\n") + "\n", f"{page}, block of line {block.line},")
    return out.getvalue()


def run_commands(block: Block, page: str) -> str:
    """What the commands of a block print."""
    out = io.StringIO()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(command, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, f"{page}: the Makefile has no target {words[1]!r}"
        elif words:
            assert words[0] == "circuit-trace", f"{page}: cannot try {command!r}"
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = cli.main(words[1:])
            # A command that fails is shown with its message.
            assert code == 0 or block.printed is not None, f"{page}: {command}\n{out.getvalue()}"
    return out.getvalue()


def run(block: Block, names: dict[str, Any], page: str) -> None:
    where = f"{page}, block of line {block.line},"
    try:
        if block.language == "python":
            printed = run_python(block, names, page)
        else:
            printed = run_commands(block, page)
    except ct.CircuitTraceError as error:
        if block.printed is None:
            raise
        printed = f"{type(error).__name__}: {error}\n"
    if block.printed is not None:
        check(block.printed, printed, where)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_and_gives_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "prompts.json")  # what AUTO_CIRCUIT.md loads
    blocks = [
        block
        for block in blocks_of(page)
        if block.language in ("python", "sh") and not (block.remark or "").startswith("not run")
    ]
    if any(PICTURE.search(block.code) for block in blocks):
        browser_or_skip()
    names: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        # What a reader would be warned of is no example to follow, but for what a format means.
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ct.FormatWarning)
        for block in blocks:
            run(block, names, page)


@pytest.mark.parametrize(
    ("language", "code", "printed"),
    [
        ("python", "1 + 1  # -> 3\n", None),
        ("python", "print(1)\n", "2\n"),
        ("python", "x = 1  # -> 1\n", None),
        ("python", "for one in '1':\n    one  # -> '1'\n", None),
        ("sh", "make nonsense\n", None),
        ("sh", "rm nothing\n", None),
        ("sh", "circuit-trace show nothing.trace\n", None),
        ("sh", "circuit-trace show nothing.trace\n", "all is well\n"),
    ],
)
def test_a_page_that_is_wrong_is_noticed(language: str, code: str, printed: str | None) -> None:
    with pytest.raises(AssertionError):
        run(Block(language, code, 1, None, printed), {}, "page")


def test_an_error_that_a_page_does_not_show_is_noticed() -> None:
    with pytest.raises(ct.FormatError):
        run(Block("python", "ct.load_scores('nothing.pt')\n", 1, None, None), {"ct": ct}, "page")


def test_only_the_blocks_that_are_listed_are_not_run() -> None:
    found = [
        (page, block.remark.removeprefix("not run: "))
        for page in PAGES
        for block in blocks_of(page)
        if block.remark is not None and block.remark.startswith("not run: ")
    ]
    assert set(found) == NOT_RUN
    assert len(found) == len(NOT_RUN)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_tried(page: str) -> None:
    text = text_of(page)
    assert {block.language for block in blocks_of(page)} <= {"python", "sh", "text"}
    assert text.count("```") == 2 * len(list(blocks_of(page)))
    indented = re.findall(r"(?<=\n\n)(?: {4}|\t)\S.*", FENCE.sub("", text))
    assert indented == [], "code that is indented rather than fenced is never tried"


def test_there_is_code_to_try() -> None:
    n_run = {
        page: sum(block.language in ("python", "sh") for block in blocks_of(page)) for page in PAGES
    }
    assert n_run["README.md"] >= 3
    assert sum(n_run.values()) >= 40


def anchor(heading: str) -> str:
    """The name that code hosts give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page: str) -> None:
    folder = (ROOT / page).parent
    for target in LINK.findall(FENCE.sub("", text_of(page))):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, name = target.partition("#")
        found = (folder / path).resolve() if path else ROOT / page
        assert found.exists(), f"{page} links to {target!r}, which is not there"
        if name:
            anchors = map(anchor, HEADING.findall(found.read_text(encoding="utf-8")))
            assert name in anchors, f"{page} links to {target!r}, which has no such heading"


def test_every_page_can_be_found() -> None:
    index = LINK.findall(text_of("docs/README.md"))
    missing = {Path(page).name for page in PAGES if page.startswith("docs/")}
    missing -= {"README.md", *index}
    assert missing == set()
    assert "docs/README.md" in LINK.findall(text_of("README.md"))


def test_the_readme_is_a_door() -> None:
    assert len(text_of("README.md").splitlines()) <= 120
