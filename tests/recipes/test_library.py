"""The library's recipes: what their first lines say is so."""

import re
from pathlib import Path

import pytest
from posttrain.recipes.load import load
from posttrain.recipes.needs import Assumptions, lines

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "recipes/library"
RECIPES = sorted(path for path in LIBRARY.glob("*/*.yaml") if path.parent.name not in ("quickstart", "course"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_says_what_it_needs_how_it_is_launched_and_whether_it_was_run(path: Path) -> None:
    head = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
    kinds = ("Memory: ", "  posttrain train ", "Settings: ")
    memory, launch, settings = (next(at for at, line in enumerate(head) if line.startswith(kind)) for kind in kinds)
    assert 0 < memory < launch < settings < len(head) - 1
    assert head[launch] == f"  posttrain train {path.relative_to(ROOT).as_posix()}"
    assert re.match(r"Never run\.$|Run on .+ with .+\.$", head[-1])
    said = re.match(r"Memory: (.+) GiB on a GPU, and (.+) hours on an H100 for 1e9 tokens, by `check", head[memory])
    assert said
    now = " ".join(lines(load(path), Assumptions("H100", tokens=1e9)))
    for figure, pattern in zip(said.groups(), (r"([\d.]+) GiB on a GPU", r"time: (\S+) hours"), strict=True):
        found = re.search(pattern, now)
        assert found
        assert float(figure) == pytest.approx(float(found[1]), rel=0.1)
