"""The rooms are packaged whole and import one way."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
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


def test_what_the_rooms_import_is_declared_and_nothing_else_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w.-]", entry)[0].lower().replace("_", "-") for entry in requirements}

    runtime = names(project["dependencies"])
    extras = {name for entries in project["optional-dependencies"].values() for name in names(entries)}
    packages = importlib.metadata.packages_distributions()
    imported = set()
    for room in ORDER:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
                found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [module or ""]
                tops = {name.partition(".")[0] for name in found} - {"", "posttrain", *sys.stdlib_module_names}
                # a package that is not installed is one that its user brings, such as vLLM
                imported |= {packages[top][0].lower().replace("_", "-") for top in tops if top in packages}
    imported -= {"pydantic-core"}  # is pydantic's
    assert runtime <= imported
    assert imported <= runtime | extras
    pinned = names([line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line])
    assert runtime <= pinned


def imports(path: Path) -> set[Path]:
    """Returns the modules that a module imports relatively, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:  # a module of a package, or a name in a module
                places = (base / alias.name, base)
                files = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
                found.add(next(file for file in files if file.is_file()))
    return found - {path}


def standing(path: Path) -> Path:
    """Returns the module right in a room, or the folder right in a room that a module lies in."""
    return ROOT.joinpath(*path.relative_to(ROOT).parts[:2])


def test_no_import_runs_up_inside_a_room() -> None:
    modules = {path: imports(path) for room in ORDER for path in (ROOT / room).rglob("*.py")}
    TopologicalSorter(modules).prepare()  # raises a CycleError that names the modules
    places: dict[Path, set[Path]] = {}
    for path, found in modules.items():
        places.setdefault(standing(path), set()).update(standing(other) for other in found)
    TopologicalSorter({place: found - {place} for place, found in places.items()}).prepare()


def test_readme_has_a_line_for_every_file() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("## What is where") :].split("```")[1]
    named, folders = set(), []
    for line in tree.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = [*folders[:depth], name.rstrip("/")]
        if name.endswith(".py"):
            named.add("/".join(folders))
    files = {path.relative_to(ROOT).as_posix() for room in ORDER for path in (ROOT / room).rglob("*.py")}
    assert named == {file for file in files if not file.endswith("__init__.py")}


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
