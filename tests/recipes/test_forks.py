"""A pipeline's processes are forks of one that has imported everything, and behave as processes of their own."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from posttrain.recipes import launch
from posttrain.recipes.errors import RunError
from posttrain.recipes.forks import Forks

from .conftest import command


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were started as anywhere else."""
    commands: list[list[str]] = []
    monkeypatch.setattr(launch, "run", lambda arguments: commands.append(list(arguments)) or 3)
    return commands


def test_without_anything_imported_a_command_is_started_as_anywhere_else(ran: list[list[str]]):
    with Forks(wanted=False) as forks:
        forks.prepare()
        assert forks.run(command("score", "x")) == 3
    assert ran == [command("score", "x")]


@pytest.mark.slow
def test_forks_end_as_processes_do_and_what_they_come_from_may_be_killed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ran: list[list[str]]
):
    (tmp_path / "bad.yaml").write_text("stage: sfft\n")
    run = tmp_path / "run"  # it has not ended, so a watch waits
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"name": "run", "finished": None}))
    (tmp_path / "text.txt").write_text("one\n")
    (tmp_path / "suite.yaml").write_text("perplexity: [{name: t, path: text.txt}]\n")
    with Forks() as forks:
        forks.prepare()
        assert forks.run(command("check", tmp_path / "bad.yaml")) == 2
        assert forks.run(command("check", "--json-schema", "suite")) == 0
        assert forks.run([*command()[:2], launch.MODULE, str(tmp_path / "bad.yaml")]) == 2
        said = capfd.readouterr()
        assert said.err.count("did you mean 'sft'") == 2
        assert '"$schema"' in said.out
        assert forks._server is not None
        threading.Thread(target=_kill_child_of, args=(forks._server.pid,)).start()
        assert forks.run(command("score", run, "--suite", tmp_path / "suite.yaml", "--watch")) == -signal.SIGKILL
        assert ran == []
        threading.Thread(target=_kill_once_it_has_forked, args=(forks._server.pid, forked := [])).start()
        with pytest.raises(RunError, match="was killed"):
            forks.run(command("score", run, "--suite", tmp_path / "suite.yaml", "--watch"))
        forks._server.wait()
        assert _is_gone(forked[0]), "what it has forked ends with it"
        assert forks.run(command("check", tmp_path / "bad.yaml")) == 3
        assert len(ran) == 1


def _kill_child_of(pid: int) -> None:
    os.kill(_child_of(pid), signal.SIGKILL)


def _kill_once_it_has_forked(pid: int, forked: list[int]) -> None:
    forked.append(_child_of(pid))
    os.kill(pid, signal.SIGKILL)


def _child_of(pid: int) -> int:
    while not (found := psutil.Process(pid).children()):
        time.sleep(0.02)
    return found[0].pid


def _is_gone(pid: int) -> bool:
    """Waits for a process to end; one that nobody has asked about yet is a zombie, and has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for _ in range(3000):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.02)
        return False
    return True
