"""``posttrain watch``: curves of runs that train or have trained, from their files alone."""

import io
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.recipes.needs import peak_of
from posttrain.recipes.watch import metrics_of, plot, read_run, watch
from rich.console import Console

from .conftest import command, posttrain


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs: one that ended, and one that trains and whose watchdog saw something."""
    for name, factor, finished in (("first", 1.0, "2026-01-01"), ("second", 2.0, None)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"name": name, "stage": "sft", "finished": finished}))
        lines = [
            {"step": step, "loss": factor / step, "loss/wiki": 1.0, "eval_loss": "NaN", "tokens_per_second": 99.0}
            for step in range(1, 40)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo')
    event = {"step": 7, "fault": "loss spike", "what": "the loss is 9", "hint": "look", "did": "warn"}
    (tmp_path / "second" / "watchdog.jsonl").write_text(json.dumps(event) + "\n")
    return [tmp_path / "first", tmp_path / "second"]


def test_a_command_prints_the_curves_and_what_the_watchdog_saw(runs: list[Path]) -> None:
    shown = posttrain("watch", *runs, "--once")
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout
    assert "first" in text
    assert "39, finished" in text
    assert "second, step 7: the loss is 9; warn" in text
    assert "loss/wiki" in text
    assert "eval_loss" not in text  # it has no number to draw
    assert posttrain("watch", *runs).stdout == text  # no terminal, so nothing to follow


def test_it_imports_nothing_heavy(runs: list[Path]) -> None:
    script = (
        "import sys; from pathlib import Path; from posttrain.recipes.watch import watch; watch([Path(sys.argv[1])])\n"
        "assert not {'torch', 'transformers', 'numpy', 'pandas'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script, runs[0]], check=True, capture_output=True)


def test_a_run_that_is_not_there_and_a_figure_that_was_not_logged_are_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing: no run; .*output_dir"):
        watch([tmp_path / "nothing"])
    with pytest.raises(InputError, match="no run has logged lss; logged were: step, loss"):
        watch(runs, ["lss"], once=True)
    missing = posttrain("watch", tmp_path / "nothing")
    assert (missing.returncode, missing.stdout) == (2, "")


def test_the_most_telling_figures_come_first(runs: list[Path]) -> None:
    assert metrics_of([read_run(runs[0])]) == ["loss", "loss/wiki", "eval_loss", "tokens_per_second"]


def test_a_curve_goes_from_corner_to_corner() -> None:
    rows = plot([[(0, 0.0), (10, 5.0)]], width=20, height=5)
    text = [row.plain for row in rows]
    assert text[0].startswith("        5│")
    assert text[3].startswith("        0│")
    assert text[0][-1] != " " != text[3][10]  # up to the right
    assert text[0][10:15].strip() == "" == text[3][-5:].strip()
    assert text[4].split("└")[1].split() == ["0", "10"]
    level = plot([[(3, 1.0)]], width=20, height=5)  # one point alone
    assert sum(ord(char) > 0x2800 for char in "".join(row.plain for row in level)) == 1


def test_curves_of_several_runs_have_colours_of_their_own(runs: list[Path]) -> None:
    curves = [read_run(run).curve("loss") for run in runs]
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    console.print(*plot(curves, 60, 8))
    assert all(code in console.file.getvalue() for code in ("\x1b[36m", "\x1b[33m"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Quadro P620", None),
    ],
)
def test_the_peak_of_a_device_is_found_by_its_name(name: str, tflops: float | None) -> None:
    assert peak_of(name) == (tflops and pytest.approx(tflops * 1e12))


@pytest.mark.slow
def test_a_page_of_trackio_s_shows_the_runs_until_ctrl_c(runs: list[Path]) -> None:
    pytest.importorskip("trackio")
    with subprocess.Popen(command("watch", *runs, "--browser"), stdout=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None
        said = shown.stdout.readline()
        address, _, rest = said.partition(" ")
        assert rest == "shows 2 runs; Ctrl-C ends it\n"
        assert "token" not in address
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200
        shown.send_signal(signal.SIGINT)
        assert shown.wait(120) == 0
