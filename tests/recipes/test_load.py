"""A recipe says what it means, or says everything that is wrong with it."""

from pathlib import Path

import pytest
from posttrain.data_tools.errors import SpecError
from posttrain.data_tools.specfile import Document, parse_scalar
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load, override_of_file, recipe_hash

GOOD = """\
stage: sft
model: {{name_or_path: {model}, chat_template: chatml}}
data:
  train: {{path: rows.jsonl, format: messages}}
trainer:
  learning_rate: 1e-5
output_dir: out
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A sound recipe beside its data."""
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.format(model=tiny_model_dir))
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(path, overrides)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def test_six_planted_mistakes_give_six_lines_with_numbers_and_suggestions(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    path = tmp_path / "bad.yaml"
    path.write_text(
        "stage: sft\n"
        "model: {name_or_path: org/model, dytpe: bfloat16, chat_template: chatlm}\n"
        "lora: {r: sixteen}\n"
        "data:\n"
        "  train: {path: trian.jsonl, format: messages}\n"
        "trainer:\n"
        "  lerning_rate: 1e-5\n"
        "  max_length: 512\n"
        "  max_length: 256\n"
        "output_dir: out\n"
    )
    found = problems(path)
    assert len(found) == 6
    assert [line.split(":")[0] for line in found] == ["2", "2", "3", "5", "7", "9"]
    text = "\n".join(found)
    for expected in (
        "model.dytpe: unknown key; did you mean 'dtype'?",
        "did you mean 'chatml'?",
        "lora.r: should be a valid integer, not 'sixteen'",
        "no such file or folder: trian.jsonl; did you mean 'train.jsonl'?",
        "trainer.lerning_rate: unknown key; did you mean 'learning_rate'?",
        "trainer.max_length: duplicate key; it already stands in line 8",
    ):
        assert expected in text


def test_exponents_without_a_point_are_numbers(recipe: Path) -> None:
    assert load(recipe).recipe.trainer["learning_rate"] == 1e-5


def test_an_override_goes_through_the_same_checks(recipe: Path) -> None:
    assert load(recipe, ["trainer.max_steps=7"]).recipe.trainer["max_steps"] == 7
    with pytest.raises(SpecError) as caught:
        load(recipe, ["trainer.max_stpes=7"])
    assert str(caught.value) == (
        "command line (trainer.max_stpes=7): trainer.max_stpes: unknown key; did you mean 'max_steps'?"
    )


@pytest.mark.parametrize("override", ["no_equals_sign", "=1", "data.train[3].path=x", "stage: [=1"])
def test_an_override_that_fits_nowhere_is_refused(recipe: Path, override: str) -> None:
    with pytest.raises((RecipeError, SpecError)):
        load(recipe, [override])


def test_a_path_in_an_override_is_meant_from_the_current_directory(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.jsonl").write_text("")
    monkeypatch.chdir(elsewhere)
    assert load(recipe, ["data.train.path=mine.jsonl"]).recipe.data.train[0].path == str(elsewhere / "mine.jsonl")


def test_a_folder_named_as_a_value_does_not_change_the_value(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sft").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(recipe, ["stage=sft"]).recipe.stage == "sft"


def test_a_file_in_the_place_of_a_source_is_told_how_to_say_it(recipe: Path) -> None:
    (alone,) = problems(recipe, "data.train=rows.jsonl")
    assert alone.endswith("data.train: a source is a section; write {path: rows.jsonl}")
    (listed,) = problems(recipe, "data.train=[{path: rows.jsonl}, more.jsonl]")
    assert listed.endswith("data.train[1]: a source is a section; write {path: more.jsonl}")


def test_keys_that_posttrain_owns_are_refused_with_the_place_to_say_them(recipe: Path) -> None:
    assert problems(recipe, "trainer.output_dir=x")[0].endswith("say output_dir at the top level of the recipe")


def test_a_run_folder_cannot_lie_below_a_file(recipe: Path) -> None:
    for folder in (recipe, recipe / "below" / "it"):
        said = f"command line (output_dir={folder}): output_dir: {recipe} is a file; name another folder"
        assert problems(recipe, f"output_dir={folder}") == [said]


def test_quantization_without_adapters_is_refused(recipe: Path) -> None:
    assert "needs a lora section" in problems(recipe, "quantization=nf4")[0]


def test_a_limit_on_saves_that_would_delete_unscored_checkpoints_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text("tasks: []\n")
    score = "score={suite: suite.yaml, every: checkpoint}"
    assert "save_total_limit" in problems(recipe, score, "trainer.save_total_limit=2")[0]


def test_the_hash_ignores_where_a_run_lies_and_notices_what_it_trains(recipe: Path) -> None:
    base = load(recipe).hash
    assert load(recipe, ["output_dir=other", "name=other"]).hash == base
    assert load(recipe, ["trainer.learning_rate=2e-5"]).hash != base


def test_the_hash_ignores_where_that_lies_which_is_known_by_its_content() -> None:
    def hash_at(folder: str) -> str:
        data = {"train": [{"path": f"{folder}/x.jsonl"}, {"path": f"{folder}/parts/*.jsonl"}]}
        model = {"name_or_path": f"{folder}/base", "tokenizer": f"{folder}/tok", "chat_template": f"{folder}/own.jinja"}
        code = {"rewards": [{"function": f"{folder}/own.py:score"}], "environment": {"game": f"{folder}/own.py:game"}}
        return recipe_hash({"data": data, "model": model, **code})

    assert hash_at("/a/b") == hash_at("/c")


@pytest.mark.parametrize(
    "override",
    [
        "data.train.path={here}chat.jsonl",
        "data.train.path={here}parts/*.jsonl",
        "data.train=[{{path: '{here}chat.jsonl'}}, {{path: '{here}parts/*.jsonl', weight: 2}}]",
        "data.eval={{path: '{here}chat.jsonl'}}",
        "rewards[1].function={here}own.py:score",
        "rewards[1]={{function: '{here}own.py:score'}}",
        "tools=['{here}own.py:score']",
        "environment.game={here}own.py:score",
        "model.tokenizer={here}tok",
        "model.chat_template=chatml",
        "score.suite=core",
        "model.name_or_path=org/model",
        "trainer.run_name=tok",
        "data.train.path=@made/chat.jsonl",
        "data.train=[",
    ],
)
def test_an_override_of_a_file_names_what_lies_beside_it_as_the_file_itself_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    for folder in ("beside", "here"):
        for name in ("parts", "tok", "chatml", "core"):
            (tmp_path / folder / name).mkdir(parents=True)
        for name in ("chat.jsonl", "parts/chat.jsonl", "own.py"):
            (tmp_path / folder / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    found = override_of_file(Document(tmp_path / "beside" / "pipeline.yaml", {}), override.format(here=""))
    expected = override.format(here=f"{tmp_path}/beside/")
    assert found.partition("=")[0] == expected.partition("=")[0]
    assert yaml_or_text(found.partition("=")[2]) == yaml_or_text(expected.partition("=")[2])


def yaml_or_text(text: str) -> object:
    try:
        return parse_scalar(text)
    except ValueError:
        return text


def test_an_override_of_the_command_line_names_what_is_here_but_a_built_in_name_is_no_folder(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "here"):
        (folder / "parts").mkdir(parents=True)
        (folder / "parts" / "rows.jsonl").touch()
    (tmp_path / "here" / "chatml").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = load(recipe, ["data.train.path=parts/*.jsonl", "model.chat_template=chatml"]).recipe
    assert (found.data.train[0].path, found.model.chat_template) == (f"{tmp_path}/here/parts/*.jsonl", "chatml")


def test_references_stand_for_the_folders_of_earlier_steps(recipe: Path, tmp_path: Path) -> None:
    loaded = load(recipe, ["model.name_or_path=@base"], {"base": tmp_path / "base"})
    assert loaded.recipe.model.name_or_path == str(tmp_path / "base")
    assert loaded.values["model"]["name_or_path"] == "@base"
    assert "did you mean 'base'?" in _error(recipe, {"base": tmp_path})


def test_a_references_folder_is_one_from_here_and_not_from_the_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "made").mkdir(parents=True)
    (tmp_path / "here" / "made" / "rows.jsonl").write_text('{"messages": []}\n')
    monkeypatch.chdir(tmp_path / "here")
    loaded = load(recipe, ["data.train.path=@made/rows.jsonl"], {"made": Path("made")})
    assert Path(loaded.recipe.data.train[0].path) == tmp_path / "here" / "made" / "rows.jsonl"


def _error(recipe: Path, references: dict[str, Path]) -> str:
    with pytest.raises(SpecError) as caught:
        load(recipe, ["model.name_or_path=@bsae"], references)
    return str(caught.value)


def test_every_recipe_in_the_repository_fits_the_schema() -> None:
    import re

    import yaml
    from posttrain.recipes.schema import Pipeline, Recipe, Study
    from posttrain.recipes.synthesize import MethodSpec

    root = Path(__file__).parents[2]
    files = sorted([*root.glob("recipes/library/**/*.yaml"), *root.glob("benchmarks/**/*.yaml")])
    seen = {"recipe": 0, "pipeline": 0}
    for file in files:
        value = yaml.safe_load(file.read_text())
        if "arms" in value:
            Study.model_validate(value)
        elif "output" in value:
            MethodSpec.model_validate(value)
        elif "steps" in value:
            Pipeline.model_validate(value)
            seen["pipeline"] += 1
        elif "stage" in value:
            references = dict.fromkeys(re.findall(r'"@([\w-]+)', file.read_text()), root)
            problems: tuple[str, ...] = ()
            try:
                assert isinstance(load(file, [], references).recipe, Recipe)
            except SpecError as error:
                problems = error.problems
            # The real run's data and what it writes are not part of the repository; nothing else may be wrong with it.
            missing = "no such file or folder: "
            outside = (f"{missing}../../../shared/data", f"{missing}../../runs/real_run")
            allowed = outside if "benchmarks" in file.parts else ()
            assert all(any(place in line for place in allowed) for line in problems), problems
            seen["recipe"] += 1
    assert seen["recipe"] >= 2
    assert seen["pipeline"] >= 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("quantization=nf4", "needs a lora section"),
        ("data.train[3].path=x", "so there is no data.train[3]"),
        ("trainer.1=2", "trainer.1: unknown key"),
        ("trainer={1: 2}", "trainer.1: unknown key"),
        ("trainer={seed: 1, seed: 2}", "duplicate key"),
        ("trainer.seed=" + "9" * 5000, "not valid YAML"),
        ("trainer..seed=1", "not of the form key=value"),
        ("stage: [=1", "not of the form"),
        ("model={name_or_path: [}", "not valid YAML"),
        ("trainer.eval_strategy=steps", "there is no data.eval"),
        ("model=null", "this key is required"),
    ],
)
def test_a_mistake_of_an_override_is_one_line_that_blames_the_override(recipe: Path, override: str, says: str) -> None:
    recipe.write_text(recipe.read_text().replace("train: {", "train: [{").replace("}\ntrainer", "}]\ntrainer"))
    (found,) = problems(recipe, override)
    assert found.startswith("command line (")
    assert says in found


def test_mistakes_of_overrides_and_of_the_file_come_together_each_with_its_place(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("learning_rate: 1e-5", "learning_rate: -1.0"))
    found = problems(recipe, "no_equals_sign", "trainer.seed=-1", "quantization=nf4")
    assert sorted(line.split(": ")[0] for line in found) == [
        "6",
        "command line (no_equals_sign)",
        "command line (quantization=nf4)",
        "command line (trainer.seed=-1)",
    ]


def test_an_override_with_null_unsets_a_key(recipe: Path) -> None:
    loaded = load(recipe, ["trainer.learning_rate=null", "model.chat_template=null"])
    assert "learning_rate" not in loaded.recipe.trainer
    assert loaded.recipe.model.chat_template is None
    assert loaded.hash == load(recipe, ["trainer={}", "model.chat_template=null"]).hash


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), "recipe"),
        (("output_dir=runs/a",), "recipe-a"),
        (("output_dir=runs/a/recipe",), "recipe-a"),
        (("output_dir=runs/recipe-lr1",), "recipe-lr1"),
        (("output_dir=runs/b", "name=mine"), "mine"),
        (("trainer.learning_rate=2e-5",), "recipe"),
    ],
)
def test_runs_of_one_recipe_in_several_folders_have_names_of_their_own(
    recipe: Path, overrides: tuple[str, ...], name: str
) -> None:
    assert load(recipe, overrides).name == name


def test_a_recipe_is_the_same_wherever_its_files_lie(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = load(recipe, ["data.train.path=rows.jsonl"]).hash
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("recipe.yaml", "rows.jsonl"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    monkeypatch.chdir(copy)
    assert load(copy / "recipe.yaml", ["data.train.path=rows.jsonl"]).hash == before
    assert load(copy / "recipe.yaml", ["trainer.learning_rate=2e-5"]).hash != before
