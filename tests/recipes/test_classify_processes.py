"""A classifier's step is the same however it is cut into batches and processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from posttrain.recipes import launch

SCRIPT = Path(__file__).parent / "classify_script.py"


def run(processes: int, output: Path, model: Path) -> dict[str, Any]:
    """Runs the script in so many processes over gloo and returns what it wrote."""
    launcher = [sys.executable, "-m", launch.LAUNCHER, "--config_file", str(launch.find_config("cpu"))]
    port = ["--main_process_port", str(launch._free_port()), "--num_processes", str(processes)]
    command = [*launcher, *port] if processes > 1 else [sys.executable]
    result = subprocess.run(
        [*command, str(SCRIPT), str(output), str(model)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.slow
def test_gradient_norms_agree_over_accumulation_and_processes(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Weighted and smoothed, multi-label, regression, with and without a teacher; an epoch ends in a smaller step."""
    one, two = (run(count, tmp_path / f"{count}.json", tiny_model_dir) for count in (1, 2))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name, steps in (one["cases"] | {f"2 {name}": steps for name, steps in two["cases"].items()}).items():
        expected = one["cases"][name.removeprefix("2 ").split(",")[0] + ", accumulation 1"]
        assert len(steps) == len(expected) == 6
        for (loss, norm), (expected_loss, expected_norm) in zip(steps, expected, strict=True):
            assert norm == pytest.approx(expected_norm, rel=1e-5), name
            assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6), name
