"""How far long work is stands on standard error, and nowhere else."""

import io
import sys

import pytest
from posttrain.data_tools import progress
from posttrain.data_tools.progress import progress_shown


def test_plain_lines_come_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_shown("a.jsonl") as advance:
        advance(5)
    assert capsys.readouterr() == ("", "")  # it was over before it was worth a line
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress_shown("a.jsonl") as advance:
        advance(4096)
        advance(1000, 20)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["a.jsonl: 4,096 rows, 0 s", "a.jsonl: 5,096 rows, 20 tokens, 0 s"]


def test_a_terminal_shows_one_line_that_is_gone_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_shown("[bold]a.jsonl") as advance:
        advance(4096)
    assert "[bold]a.jsonl" in terminal.getvalue()  # a file's name is no markup
    assert "4,096 rows" in terminal.getvalue()
