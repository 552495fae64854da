"""The rooms are packaged whole and import one way."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ["chat_templates", "data_tools", "evals", "recipes"]


def test_setuptools_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        f"posttrain.{p.parent.relative_to(ROOT).as_posix().replace('/', '.')}"
        for r in ORDER
        for p in (ROOT / r).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


def imported_rooms(path: Path) -> set[str]:
    """Returns the rooms that a module imports, relatively or by the installed name."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = (node.module or "").split(".") if node.module else []
            names = [[*base, *module]] if module else [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").removeprefix("posttrain.").split(".")]
        elif isinstance(node, ast.Import):
            names = [alias.name.removeprefix("posttrain.").split(".") for alias in node.names]
        found |= {name[0] for name in names if name and name[0] in ORDER}
    return found


@pytest.mark.parametrize("room", ORDER)
def test_rooms_import_one_way(room: str) -> None:
    allowed = set(ORDER[: ORDER.index(room) + 1])
    for path in (ROOT / room).rglob("*.py"):
        assert imported_rooms(path) <= allowed, path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from posttrain.recipes import cli\n"
        "sys.argv = ['posttrain', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'pydantic', 'numpy', 'polars', 'pyarrow', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_checking_a_recipe_without_data_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "r.yaml").write_text(
        "stage: sft\nmodel: {name_or_path: org/name, chat_template: chatml}\n"
        "data: {train: {path: rows.jsonl}}\noutput_dir: out\n"
    )
    code = (
        "import sys\nfrom posttrain.recipes import cli\n"
        f"try:\n    cli.app(['check', '--no-data', {str(tmp_path / 'r.yaml')!r}])\n"
        "except SystemExit as done:\n    assert not done.code, done.code\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
