"""``init``, ``--version`` and the list of commands."""

import re
from pathlib import Path

import pytest
from posttrain.recipes import check
from posttrain.recipes.init import write_recipe
from posttrain.recipes.load import load
from posttrain.recipes.schema import Recipe
from posttrain.recipes.stage_table import STAGE_SECTIONS, STAGES

from .conftest import posttrain


@pytest.mark.parametrize("stage", STAGES)
def test_a_new_recipe_has_every_key_of_its_stage_with_its_docstring(
    stage: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    recipe = write_recipe(stage, str(tiny_model_dir), tmp_path / "r.yaml")[0]
    assert load(recipe).recipe.stage == stage
    text = recipe.read_text()
    keys = re.findall(r"(?m)^(?:# )?(\w+):", text)
    assert keys == [key for key in Recipe.model_fields if key not in STAGE_SECTIONS - STAGES[stage].sections]
    comments = " ".join(line.strip("# ") for line in text.splitlines() if line.lstrip().startswith("#"))
    for key in ("model", "data", "score"):
        assert " ".join(str(Recipe.model_fields[key].description).split()) in comments
    assert "What the weights are held in" in comments


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=() if stage == "ppo" else pytest.mark.slow) for stage in STAGES]
)
def test_check_accepts_a_new_recipe_with_its_example_rows(
    stage: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(stage, str(tiny_model_dir), Path("r.yaml"))[0]
    assert check.check_all([recipe], [], {}, read_data=True) == 0


def test_init_overwrites_nothing_and_names_the_stages(tmp_path: Path) -> None:
    taken = tmp_path / "sft-rows.jsonl"
    taken.write_text("mine")
    refused = posttrain("init", "sft", "org/model", "-o", tmp_path / "sft.yaml")
    assert (refused.returncode, refused.stderr) == (2, f"{taken}: is there already; name another file with -o\n")
    assert [path.name for path in tmp_path.iterdir()] == [taken.name]
    assert "did you mean 'sft'?" in posttrain("init", "stf", "org/model").stderr
    given = posttrain("init", "sft", "org/model", "-o", tmp_path / "sft.yaml", "--data", "rows.csv")
    assert given.stdout == f"{tmp_path / 'sft.yaml'}\n"
    assert "train: {path: rows.csv}" in (tmp_path / "sft.yaml").read_text()


def test_no_line_of_help_is_cut_and_the_version_names_the_libraries() -> None:
    printed = posttrain("--help").stdout
    assert "before a model is trained or scored." in " ".join(printed.split())
    assert "..." not in printed.partition("Commands:")[2]
    assert re.match(r"posttrain \d+\.\d+\.\d+\n  torch \d", posttrain("--version").stdout)


def test_a_model_that_is_nowhere_is_one_line() -> None:
    refused = posttrain("init", "sft", "/no/such/model", "-o", "r.yaml")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "neither a folder nor a name of the Hub" in refused.stderr
