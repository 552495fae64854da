"""Every data tool is one model of its arguments: the command, a pipeline's step, its checks and its schema follow."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools import row_tool
from posttrain.data_tools.errors import SpecError
from posttrain.data_tools.spec import SourceSpec
from posttrain.recipes import pipeline as pipelines
from posttrain.recipes.tools import TOOLS, load_tool, run_command

from ..rows import write_texts
from .conftest import posttrain

WORLD = Path(__file__).parents[2] / "recipes" / "library" / "quickstart" / "world.py"
EVERY = [*TOOLS, f"{WORLD}:World"]
# What tools need one of several arguments for: any of them.
ONE_OF = {
    "clean": {"presets": ["chat"]},
    "quality": {"classifier": "x"},
    "semantic": {"model": "x"},
    "select": {"queries": "x.jsonl"},
}


def step(tmp_path: Path, tool: str, args: dict[str, Any]) -> pipelines.PlannedStep:
    """Plans a step that runs a tool, which checks all of it."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"steps": [{"name": "x", "tool": tool, "args": args}], "output_dir": "out"}))
    pipeline, document = pipelines.load_pipeline(path)
    return pipelines.plan(document, pipeline)["x"]


def smallest(name: str, recipe: Path) -> dict[str, Any]:
    """The arguments that a tool cannot do without."""
    needed = {key: field.annotation for key, field in load_tool(name).model_fields.items() if field.is_required()}
    plain = {str: "x.jsonl", SourceSpec: "x.jsonl", float: 1.0}
    given = {key: plain[kind] if kind in plain else [least_of(*get_args(kind))] for key, kind in needed.items()}
    return given | ({"recipe": str(recipe)} if "recipe" in needed else {})


def least_of(kind: Any) -> str:
    """A name, where only certain ones are allowed, else a path."""
    return get_args(kind)[0] if get_origin(kind) is Literal else "x.jsonl"


def test_the_list_of_tools_has_a_gap_behind_every_name() -> None:
    printed = posttrain("data", "--help").stdout
    for name, (_, line) in TOOLS.items():
        assert re.search(rf"^ +{name} {{2,}}{re.escape(line)}$", printed, re.MULTILINE)


@pytest.mark.parametrize("name", EVERY)
def test_the_command_line_and_the_schema_know_every_argument_and_what_it_is(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = load_tool(name).model_fields
    with pytest.raises(SystemExit, match="0"):
        run_command(name, "--help")
    printed = capsys.readouterr().out
    for key, field in fields.items():
        assert field.description, f"{key} has no docstring"
        assert key in printed or f"--{key.replace('_', '-')}" in printed
    with pytest.raises(SystemExit, match="0"):
        run_command(name, "--json-schema")
    properties = json.loads(capsys.readouterr().out)["properties"]
    assert {key: found["description"] for key, found in properties.items()} == {
        key: field.description for key, field in fields.items()
    }


@pytest.mark.parametrize("name", EVERY)
def test_a_step_refuses_arguments_that_are_unknown_missing_or_of_another_type(
    tmp_path: Path, make_recipe: Callable[..., Path], name: str
) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "x"}\n')
    needed = smallest(name, make_recipe(stage="pretrain"))
    given = needed | ONE_OF.get(name, {})
    first = next(iter(load_tool(name).model_fields))
    assert type(step(tmp_path, name, given).tool).__name__ == load_tool(name).__name__
    with pytest.raises(SpecError) as caught:
        step(tmp_path, name, given | {f"{first}x": 1})
    assert f"steps[0].args.{first}x: unknown key; did you mean '{first}'?" in str(caught.value)
    with pytest.raises(SpecError, match=rf"steps\[0\].args.{first}"):
        step(tmp_path, name, given | {first: 1.5})
    for key in needed:
        with pytest.raises(SpecError, match=rf"args.{key}: this key is required"):
            step(tmp_path, name, {other: value for other, value in given.items() if other != key})


def test_a_wrong_argument_on_the_command_line_is_one_line_and_exit_two(tmp_path: Path) -> None:
    result = posttrain("data", "answers", "x.jsonl", "--model", "m", "--samples", "0", "-o", tmp_path / "out")
    assert (result.returncode, result.stderr) == (
        2,
        "posttrain data answers: samples: should be greater than or equal to 1, not 0\n",
    )
    result = posttrain("data", "select", "x.jsonl", "--model", "m", "--by", "k_centre")
    assert (result.returncode, "not 'k_centre'; did you mean 'k_center'?\n" in result.stderr) == (2, True)
    result = posttrain("data", "tokeniser", "x.jsonl")
    assert (result.returncode, result.stderr) == (2, "no tool 'tokeniser'; did you mean 'tokenizer'?\n")


def test_a_source_on_the_command_line_says_what_a_recipe_may_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("good film,1\nbad film,0\n")
    Path("other.txt").write_text("good film\n")
    with pytest.raises(SystemExit, match="0"):
        run_command("convert", "{path: rows.csv, columns: {0: text, 1: label}}", "other.txt", "-o", "out")
    assert Path("out/rows.jsonl").read_text().splitlines()[1] == '{"text":"bad film","label":"0"}'
    assert Path("out/other.jsonl").exists()
    with pytest.raises(SpecError, match=r"sources\[0\].colums: unknown key; did you mean 'columns'"):
        run_command("convert", "{path: rows.csv, colums: {0: text}}")
    with pytest.raises(SystemExit, match="2"):
        run_command("convert", "{path: rows.csv")
    assert "not valid YAML" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        run_command("dedup", "out", "--against", "other.txt", "-o", "deduped")
    assert Path("deduped/out.jsonl").read_text() == '{"text":"bad film","label":"0"}\n'


@pytest.mark.parametrize(
    ("name", "field", "more"),
    [
        ("dedup", "against", {}),
        ("quality", "good", {"bad": "bad.jsonl"}),
        ("sample", "target", {"by": "dsir_mean", "tokens": 100.0}),
        ("select", "queries", {"count": 4}),
    ],
)
def test_a_killed_tool_does_not_go_on_with_rows_to_compare_with_that_were_corrected_since(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, field: str, more: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    sides = [[f"{word} {number} {word} {number + 1} {word}" for number in range(150)] for word in ("river", "stone")]
    write_texts(Path("rows.jsonl"), [text for pair in zip(*sides, strict=True) for text in pair][:60])
    write_texts(Path("bad.jsonl"), [f"{number} of neither {number}" for number in range(150)])
    given = more | ({"model": str(tiny_model_dir)} if name == "select" else {})
    tool = load_tool(name).model_validate({"sources": "rows.jsonl", field: "like.jsonl", **given})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    def written(folder: str) -> bytes:
        tool.run(Path(folder))
        return Path(folder, "rows.jsonl").read_bytes()

    write_texts(Path("like.jsonl"), sides[0])
    before = written("before")
    with monkeypatch.context() as patch:
        patch.setattr(row_tool, "join", killed)  # when every block is there
        with pytest.raises(KeyboardInterrupt):
            tool.run(Path("out"))
    write_texts(Path("like.jsonl"), sides[1])
    after = written("out")
    assert after == written("fresh")
    assert after != before, "what it is compared with decides"


OWN = '''
from posttrain.data_tools.tool import Tool

class Greet(Tool):
    """Greets."""

    name: str
    """Who is greeted."""
    loud: bool = False
    """Whether it is said loudly."""
    titles: dict[str, str] = {}
    """What people are called besides."""

    def run(self, output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        text = f"hello {self.titles.get(self.name, '')}{self.name}"
        (output_dir / "greeting.txt").write_text(text.upper() if self.loud else text)
        return "greeted"
'''


def test_a_tool_of_ones_own_runs_as_a_command_and_as_a_step_until_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    result = posttrain(
        "data", tmp_path / "own.py:Greet", "--name", "Ada", "--loud", "--titles", "{Ada: Dr. }", "-o", tmp_path
    )
    assert (result.returncode, result.stdout) == (0, "greeted\n"), result.stderr
    assert (tmp_path / "greeting.txt").read_text() == "HELLO DR.ADA"

    said: list[str] = []
    step(tmp_path, "own.py:Greet", {"name": "Bram"})
    assert pipelines.run(tmp_path / "pipeline.yaml", say=said.append)
    assert said == ["x: running", "greeted"]
    assert (tmp_path / "out" / "x" / "greeting.txt").read_text() == "hello Bram"
    assert not pipelines.run(tmp_path / "pipeline.yaml", say=said.append)
    (tmp_path / "own.py").write_text(OWN.replace("hello", "bye"))
    assert pipelines.run(tmp_path / "pipeline.yaml", say=said.append)
    assert (tmp_path / "out" / "x" / "greeting.txt").read_text() == "bye Bram"


def test_a_tool_that_reads_the_whole_folder_of_an_earlier_step_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    steps = [
        {"name": "first", "tool": "own.py:Greet", "args": {"name": "Ada"}},
        {"name": "second", "tool": "own.py:Greet", "args": {"name": "@first"}},
        {"name": "third", "tool": "dedup", "args": {"sources": ["@first", {"path": "@first/*.txt", "name": "again"}]}},
    ]
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"steps": steps, "output_dir": "out"}))
    assert pipelines.run(tmp_path / "pipeline.yaml")
    assert not pipelines.run(tmp_path / "pipeline.yaml")


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("own.py:Great", "own.py has no function Great"),
        ("own.py:Path", "is no class made from posttrain.data_tools.tool.Tool"),
        ("onw.py:Greet", "cannot be imported: FileNotFoundError"),
        ("json:dumps", "no tool 'json:dumps'"),
    ],
)
def test_what_is_no_tool_is_said_where_it_stands(tmp_path: Path, tool: str, words: str) -> None:
    (tmp_path / "own.py").write_text("from pathlib import Path\n" + OWN)
    with pytest.raises(SpecError, match=r"pipeline.yaml:\d+: steps\[0\].tool: ") as caught:
        step(tmp_path, tool, {})
    assert words in str(caught.value)
    with pytest.raises(InputError):
        load_tool(tool)


def test_an_option_that_stands_twice_is_a_list_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"text": "to ann@firm.org or 8.8.4.4"}\n')
    with pytest.raises(SystemExit, match="0"):
        run_command("scrub", "a.jsonl", "--kinds", "email", "--kinds", "card,iban", "-o", "out")
    assert json.loads(Path("out/report.json").read_text())["arguments"]["kinds"] == ["email", "card", "iban"]
    Path("b,c.jsonl").write_text('{"text": "something else"}\n')
    with pytest.raises(SystemExit, match="0"):
        run_command("dedup", "a.jsonl", "--against", "a.jsonl", "--against", "b,c.jsonl", "-o", "unique")
    against = json.loads(Path("unique/report.json").read_text())["arguments"]["against"]
    assert [source["path"] for source in against] == ["a.jsonl", "b,c.jsonl"]
    with pytest.raises(InputError, match="--thresholds: stands 2 times"):
        run_command("clean", "a.jsonl", "--presets", "c4", "--thresholds", "{min_words: 1}", "--thresholds", "{}")
    with pytest.raises(SystemExit, match="0"):
        run_command("dedup", "--help")
    assert re.search(r"--threshold <float>.*\[default: 0\.8\]", capsys.readouterr().out, re.DOTALL)
