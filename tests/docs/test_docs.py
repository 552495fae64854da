"""The docs say what is so: every key, every command, every message."""

import ast
import gzip
import importlib.util
import json
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from posttrain.evals.judges import JudgeSpec
from posttrain.recipes import cli
from posttrain.recipes.tools import TOOLS, load_tool, run_command
from pydantic import BaseModel

from ..recipes import warm

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs/howto").glob("*.md"))
ROOMS = ("chat_templates", "data_tools", "evals", "recipes")

# Commands that are not run here, by how they begin: the test that runs such a command, or why none can.
ELSEWHERE: Mapping[str, str] = {
    "make quickstart": "minutes; its pipelines are checked by tests/recipes/test_pipeline.py",
    "make test": "it is what runs this",
    "pip install": "network",
    "accelerate launch": "several machines; one is tests/recipes/test_processes.py",
    "vllm serve": "a server with a GPU",
    "echo ": "tests/docs/test_docs.py, the slow test of the page",
    "posttrain check suite.yaml": "tests/recipes/test_check_suites.py",
    "posttrain check recipe.yaml": "tests/recipes/test_init.py",
    "posttrain show": "tests/recipes/test_cli.py",
    "posttrain train": "tests/recipes/test_processes.py",
    "posttrain run": "tests/recipes/test_pipeline.py",
    "posttrain score": "tests/evals/test_score.py",
    "posttrain watch": "tests/recipes/test_watch.py",
    "posttrain report": "tests/evals/test_report.py",
    "posttrain arena": "a page that waits for votes; tests/browser/test_arena_page.py",
    "posttrain parity": "tests/recipes/test_merge.py",
    "posttrain export": "tests/recipes/test_export.py",
    "posttrain merge": "tests/recipes/test_merge.py",
    "posttrain chat": "tests/recipes/test_chat.py",
    "posttrain card": "tests/evals/test_model_card.py",
    "posttrain data decontaminate": "network; tests/data_tools/test_decontaminate.py",
    "posttrain data stats deduped": "network; tests/data_tools/test_stats.py",
    "posttrain data score_rows": "network; tests/recipes/test_score_rows.py",
    "posttrain data select": "network; tests/recipes/test_select_rows.py",
    "posttrain data compare_tokenizers": "network; tests/recipes/test_tokenizer_tools.py",
    "posttrain data extend_tokenizer": "network; tests/recipes/test_tokenizer_tools.py",
    "posttrain data quality": "seconds; tests/data_tools/test_quality.py",
    "posttrain data synthesize": "a server, network; tests/recipes/test_synthesize.py",
    "posttrain data scaling": "seconds; tests/recipes/test_scaling.py",
    "posttrain data mup": "minutes; tests/recipes/test_mup.py",
}


def blocks() -> Iterator[tuple[Path, int, list[str]]]:
    """Every block of commands: its page, its number there, and its commands."""
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)):
            lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
            yield page, number, [line for line in lines if line and not line.startswith("#")]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def not_run(command: str) -> str | None:
    return next((why for prefix, why in ELSEWHERE.items() if command.startswith(prefix)), None)


COMMANDS = [command for _, _, found in blocks() for command in found]
HERE = [
    pytest.param([command for command in found if not not_run(command)], id=f"{page.stem}-{number}")
    for page, number, found in blocks()
    if page.stem != "csv_to_served" and not all(map(not_run, found))
]


def test_what_is_not_run_here_says_why_and_is_somewhere() -> None:
    for prefix, why in ELSEWHERE.items():
        assert any(command.startswith(prefix) for command in COMMANDS), prefix
        begun = prefix.split()
        for path in re.findall(r"tests/\S+\.py", why):
            assert (ROOT / path).is_file(), path
            if begun[0] == "posttrain":  # the command's name, or the tool's
                assert begun[2 if begun[1] == "data" else 1] in (ROOT / path).read_text().lower(), (prefix, path)


@pytest.mark.parametrize("command", sorted({line for line in COMMANDS if line.startswith("posttrain ")}))
def test_every_command_is_one_that_the_command_line_takes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group: Any = typer.main.get_command(cli.app)
    name, *arguments = words(command)[1:]
    if "|" in arguments:
        arguments = arguments[: arguments.index("|")]
    if name != "data":
        group.commands[name].make_context(name, arguments)
        return
    monkeypatch.setattr(load_tool(arguments[0]), "run", lambda self, output_dir: "read")
    with pytest.raises(SystemExit) as done:
        run_command(*arguments)
    assert not done.value.code


@pytest.mark.parametrize("commands", HERE)
def test_the_commands_of_a_block_run_one_after_the_other(
    commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        arguments = []
        for word in words(command)[1:]:
            found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob(word)) if "*" in word else []
            arguments += found or [word]
        with pytest.raises(SystemExit) as done:
            cli.app(arguments)
        assert not done.value.code, command


def fill(folder: Path) -> None:
    """Writes what the commands of the docs read."""

    def rows(name: str, made: list[dict[str, Any]]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in made))

    def page(kind: str, number: int) -> dict[str, Any]:
        """A page of words that no rule for web text leaves out."""
        draw = random.Random(f"{kind} {number}")

        def word() -> str:
            return "".join(draw.choice(("ba", "lo", "ter", "min", "sa", "ne", "ru", "do")) for _ in range(3))

        lines = [
            " ".join(word() for _ in range(5)) + f" that {word()} of the {word()} with {word()}." for _ in range(12)
        ]
        return {"text": "\n".join(lines)}

    pages = "raw/web raw/manuals web/a web/b textbooks sample texts/a text pages clean/web clean/manuals"
    for name in pages.split():
        rows(f"{name}.jsonl", [page(name, number) for number in range(120)])
    rows("scored/a.jsonl", [{**page("scored", number), "ifd": number / 120} for number in range(120)])
    recipe = "stage: pretrain\nmodel: {name_or_path: HuggingFaceTB/SmolLM2-135M}\ndata: {train: {path: text.jsonl}}\n"
    (folder / "recipe.yaml").write_text(recipe + "output_dir: out\n")
    asked = [f"Which number follows {number}?" for number in range(30)]
    talks = [
        [{"role": "user", "content": one}, {"role": "assistant", "content": f"It is {asked.index(one) + 1}."}]
        for one in asked
    ]
    talks[16] = talks[3]
    rows("chats.jsonl", [{"messages": talk} for talk in talks])
    (folder / "old.csv").write_text("prompt,completion\n" + "".join(f"{one},It is so.\n" for one in asked))
    (folder / "sms.tsv").write_text("ham\tSee you at nine.\nspam\tWin a prize now!\n" * 5)
    (folder / "pairs.txt").write_text("Quality\t#1 String\n" + "1\tIt rained.\n0\tIt snowed.\n" * 5)
    for label in ("pos", "neg"):
        (folder / "aclImdb/train" / label).mkdir(parents=True)
        (folder / "aclImdb/train" / label / "0.txt").write_text(f"A film that is {label}.")
    with gzip.open(folder / "judged.json.gz", "wt") as file:
        json.dump([{"input": one, "output_1": "Yes.", "output_2": "No."} for one in asked], file)
    mixed = re.search(r"```yaml\n(stage: pretrain\n.*?)```", (ROOT / "docs/howto/raw_rows.md").read_text(), re.DOTALL)
    assert mixed
    (folder / "pretrain.yaml").write_text(mixed[1])
    (folder / "recipes").symlink_to(ROOT / "recipes")


@pytest.mark.slow
def test_the_page_from_a_csv_to_a_served_model_works_as_written(
    tmp_path: Path, instruct_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/howto/csv_to_served.md").read_text()
    table = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert table
    (tmp_path / "faq.csv").write_text(table[1] + "Is there tea?,Yes.\n" * 30)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    program = f"{sys.executable} -m posttrain.recipes.cli"
    monkeypatch.chdir(tmp_path)
    for command in commands:
        if command.startswith("vllm") or "--to ollama" in command:
            continue  # a server, and a converter that is fetched
        line = command.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(instruct_model_dir))
        if "|" in line:
            line = re.sub(r"\| posttrain ", f"| {program} ", line)
            done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        else:
            done = warm.run(*shlex.split(line, comments=True)[1:])
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "served/config.json").is_file()


def reference() -> Any:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def models(model: type[BaseModel], found: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """A model and all that its fields hold, by their names."""

    def look(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            models(annotation, found)
        for part in get_args(annotation):
            look(part)

    if model.__name__ not in found:
        found[model.__name__] = model
        for field in model.model_fields.values():
            look(field.annotation)
            for one in field.metadata:  # what a section may be given as, such as a path for a source
                look(getattr(one, "json_schema_input_type", None))
    return found


def test_every_key_of_files_and_tools_stands_in_the_reference(tmp_path: Path) -> None:
    module = reference()
    module.write(tmp_path)
    roots = [(name, "", model) for name, (model, _) in module.FILES.items()]
    roots += [("tools", name, load_tool(name)) for name in TOOLS]
    for page, title, root in roots:
        text = (tmp_path / f"{page}.md").read_text()
        for model in models(root, {}).values():
            heading = title if model is root else model.__name__
            section = (text if not heading else text.partition(f"\n## {heading}\n")[2]).partition("\n## ")[0]
            for key in model.model_fields:
                assert f"**`{key}`**" in section, (page, heading, key)
    commands = (tmp_path / "commands.md").read_text()
    group: Any = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        assert f"## {name}\n" in commands
        assert all(option in commands for parameter in command.params for option in parameter.opts if "-" in option)


def test_every_message_of_the_troubleshooting_is_one_of_the_code() -> None:
    messages = re.findall(r"(?m)^\*\*(`+) ?(.+?) ?\1\*\*$", (ROOT / "docs/troubleshooting.md").read_text())
    assert len(messages) > 25
    parts_of = {message: [part.strip() for part in message.split("…") if part.strip()] for _, message in messages}
    said = []
    for path in [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                said.append("…".join(str(one.value) for one in node.values if isinstance(one, ast.Constant)))
    for message, parts in parts_of.items():
        assert any(all(part in text for part in parts) for text in said), message


@pytest.mark.parametrize("path", sorted((ROOT / "docs/moving").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_translated_recipe_is_one(path: Path, tmp_path: Path) -> None:
    """Checked without its data, which are on the Hub or in the other's repository."""
    text = path.read_text()
    assert re.match(r"# .*(axolotl|LLaMA-Factory|TRL).*translated\. Never run\.\n", text)
    recipe = tmp_path / path.name
    recipe.write_text(text)
    for source in re.findall(r"data/\w+\.json", text):
        (tmp_path / source).parent.mkdir(exist_ok=True)
        (tmp_path / source).write_text("[]")
    with pytest.raises(SystemExit) as done:
        cli.app(["check", "--no-data", str(recipe)])
    assert not done.value.code


def test_the_judge_of_the_page_can_be_used() -> None:
    page = (ROOT / "docs/howto/judges.md").read_text()
    example = re.search(r"`polite/judge.yaml`:\n\n```yaml\n(.*?)```", page, re.DOTALL)
    assert example
    assert JudgeSpec.model_validate(yaml.safe_load(example[1])).kind == "rating"
