"""The command line, as a person would type it."""

from pathlib import Path

import pytest

import circuit_trace as ct
from circuit_trace import cli
from circuit_trace.visualize import write


def no_browser(_figure: object, path: Path, _scale: float) -> None:
    raise ct.FigureError(write.NO_BROWSER.format(suffix=path.suffix))


def test_demo_prints_the_table_and_names_the_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(write, "_write_image", no_browser)
    assert cli.main(["demo", "--top", "3", "--out", "pics"]) == 0
    printed = capsys.readouterr().out
    header = next(line for line in printed.splitlines() if "current_norm" in line)
    assert header.split() == [
        "edge", "position", "token", "current_norm", "patched_norm", "cosine", "effect",
    ]  # fmt: skip
    assert "with these 3 edges patched" in printed
    assert "wrote pics/circuit.html" in printed
    assert "no PNG: Pictures such as .png" in printed
    assert (tmp_path / "pics" / "circuit.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--clean", "When Mary"], "must have as many tokens"),
        (["demo", "--model", "no-such-model"], "no-such-model"),
    ],
)
def test_what_does_not_fit_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("circuit-trace: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["demo", "--top", "0"], ["demo", "--top", "x"], ["no-such-command"]]
)
def test_what_cannot_be_parsed_exits_with_two_and_the_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: circuit-trace" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--help"])
    assert caught.value.code == 0
    assert "circuit-trace demo --model gpt2" in capsys.readouterr().out
