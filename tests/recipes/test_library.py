"""The library's recipes: what their first lines say is so."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from posttrain.recipes import check
from posttrain.recipes.load import load
from posttrain.recipes.needs import Assumptions, lines

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "recipes/library"
COURSE = sorted((LIBRARY / "course").glob("*.yaml"))
RECIPES = sorted(path for path in LIBRARY.glob("*/*.yaml") if path.parent.name not in ("quickstart", "course"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_says_what_it_needs_how_it_is_launched_and_whether_it_was_run(path: Path) -> None:
    head = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
    kinds = ("Memory: ", "  posttrain train ", "Settings: ")
    memory, launch, settings = (next(at for at, line in enumerate(head) if line.startswith(kind)) for kind in kinds)
    assert 0 < memory < launch < settings < len(head) - 1
    assert head[launch] == f"  posttrain train {path.relative_to(ROOT).as_posix()}"
    assert re.match(r"Never run( in full: .+)?\.$|Run on .+ with .+\.$", head[-1])
    said = re.match(r"Memory: (.+) GiB on a GPU, and (.+) hours on an H100 for 1e9 tokens, by `check", head[memory])
    assert said
    now = " ".join(lines(load(path), Assumptions("H100", tokens=1e9)))
    for figure, pattern in zip(said.groups(), (r"([\d.]+) GiB on a GPU", r"time: (\S+) hours"), strict=True):
        found = re.search(pattern, now)
        assert found
        assert float(figure) == pytest.approx(float(found[1]), rel=0.1)


def _head(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[: _first_key(lines)])


def _first_key(lines: list[str]) -> int:
    return next(number for number, line in enumerate(lines) if not line.startswith("#"))


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_an_exercise_asks_says_how_it_is_run_and_what_came_out(path: Path) -> None:
    head = _head(path)
    if owner := re.search(r"(\w+\.yaml)", head.partition("\n")[0]):  # a part of another exercise, which names it
        assert path.name in (path.parent / owner[1]).read_text()
        return
    assert "?" in head.split("\n\n")[0]
    assert re.search(rf"^  posttrain \w+ .*{path.relative_to(ROOT).as_posix()}", head, re.MULTILINE)
    for part in ("Time: ", "Idea: ", r"Result \(\d{4}-\d\d-\d\d"):
        assert re.search(f"^{part}", head, re.MULTILINE), part
    assert f"course/{path.name}" in (ROOT / "docs/course.md").read_text()


def test_every_exercise_is_checked_whole_without_network(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [path for path in COURSE if "\nResult (" in _head(path)]
    assert len(paths) >= 5
    assert check.check_all(paths, [], {}, read_data=False) == 0
    said = capsys.readouterr().out
    assert all(f"{path}: ok" in said for path in paths)


def test_the_adapters_that_are_compared_train_equally_many_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    path = LIBRARY / "course/adapters.yaml"
    assert check.check_all([path], [], {}, read_data=False) == 0
    trained = re.findall(r"(\w+)\.all\.1: model: .* trained \(([\d,]+)\)", capsys.readouterr().out)
    assert [arm for arm, _ in trained] == list(yaml.safe_load(path.read_text())["arms"])
    assert len({count for _, count in trained}) == 1


def test_flops_by_hand_are_those_of_check_and_of_torch(capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    path = LIBRARY / "course/flops.yaml"
    sums = re.findall(r"^  ([^:\n]+): ([\d *+/().]+) = ([\d.]+)$", _head(path), re.MULTILINE)
    assert len(sums) >= 10
    by_hand = {}
    for name, expression, result in sums:
        by_hand[name] = eval(expression, {"__builtins__": {}})
        assert by_hand[name] == pytest.approx(float(result), rel=1e-5), name
    said = " ".join(lines_of(path))
    assert f"({by_hand['parameters']:,})" in said
    assert f"{by_hand['FLOPs of a token']:.3g} FLOPs a token" in said
    assert f"{by_hand['of a billion tokens']:.2e} FLOPs" in said
    assert f"time: {by_hand['hours at 40% of 312 TFLOP/s']:.2g} hours" in said
    with_lora = " ".join(lines_of(path, "lora={r: 8, target_modules: [c_attn]}"))
    assert f"({by_hand['weights of the adapters']:,})" in with_lora
    assert f"{by_hand['FLOPs of a token with adapters']:.3g} FLOPs a token" in with_lora

    length, layers, width, vocab = 32, 2, 64, 300
    sizes = {"n_embd": width, "n_layer": layers, "n_head": 4, "vocab_size": vocab, "pad_token_id": 0}
    config = AutoConfig.for_model("gpt2", **sizes, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.zeros(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    weights = layers * (4 * width * width + 8 * width * width) + vocab * width  # biases are added, not multiplied with
    assert counter.get_total_flops() == length * (6 * weights + 3 * 4 * layers * width * length)


def lines_of(path: Path, *overrides: str) -> list[str]:
    return lines(load(path, overrides), Assumptions("A100-80GB", tokens=1e9))
