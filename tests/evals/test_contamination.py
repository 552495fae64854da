"""Test items in the training data of a run and its ancestors are found, and the clean score is over the others."""

import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.sources import Row, content_hash, read_rows
from posttrain.data_tools.spec import SourceSpec
from posttrain.evals.contamination import training_data
from posttrain.evals.definitions import HarnessTask
from posttrain.evals.pairs import figures
from posttrain.evals.records import parquet, samples_name
from posttrain.evals.report import build
from posttrain.evals.report.html import to_html
from posttrain.evals.report.markdown import to_markdown
from posttrain.evals.score import score
from posttrain.evals.stats.strata import group_mean

from . import report_fixtures
from .conftest import write_rows
from .headed import headed_model, save_run

MakeRun = Callable[..., Path]
NOUNS = "apple boat chair dog elm fish goat hat ink jar kite lamp moon nest oven pig quilt rope star tree".split()  # noqa: SIM905


def item(number: int) -> dict[str, Any]:
    draw = random.Random(number)
    first, second, third = draw.sample(NOUNS, 3)
    question = (
        f"Mr {chr(65 + number % 26)}{number} has {number} of the {first}s. Where is his {second}, and which {third}?"
    )
    return {"question": question, "choices": ["red", "blue"], "answer": number % 2}


ITEMS = [item(number) for number in range(60)]
SHORT = [{"prompt": f"What is {number} times 7?", "answer": str(7 * number)} for number in range(20, 40)]
FILLER = [
    {"messages": [{"role": "user", "content": f"Hello {n}, what is new with the {NOUNS[n % 20]}?"}]} for n in range(99)
]
LEAKS = {
    3: lambda text: text,
    17: str.upper,
    31: lambda text: text.replace(" ", " -- ").replace("?", "!"),
    44: lambda text: text.replace(" ", "\n\t"),
}  # 4 of 80 items of both tasks, 5%, and a short one


def suite_file(folder: Path, contamination: str = "auto") -> Path:
    folder.mkdir(exist_ok=True)
    write_rows(folder / "choices.jsonl", ITEMS)
    write_rows(folder / "sums.jsonl", SHORT)
    path = folder / "quiz.yaml"
    path.write_text(
        f"contamination: {contamination}\n"
        "tasks:\n"
        "  - {task: multiple_choice, name: places, data_files: {test: choices.jsonl}}\n"
        "  - {task: exact_match, name: sums, data_files: {test: sums.jsonl}, gen_kwargs: {max_gen_toks: 2}}\n"
    )
    return path


def trained_on(run: Path, trained: Path, origin: Path | None = None, **more: Any) -> None:
    """Writes the part of a run's record that says what it was trained on, and what it came from."""
    record = json.loads((run / "run.json").read_text())
    hashes = [content_hash(SourceSpec(path=str(trained)), Path())] if trained.is_file() else ["0" * 16]
    record |= {
        "recipe": {"data": {"train": {"path": str(trained), "format": "messages"}}},
        "data": {"train": {"contents": hashes}},
        "parent": origin and {"name": origin.name, "path": str(origin)},
    }
    (run / "run.json").write_text(json.dumps(record | more))


def leaky(path: Path) -> Path:
    rows = list(FILLER)
    for place, (number, change) in enumerate(LEAKS.items()):
        said = change(ITEMS[number]["question"])
        rows.insert(
            20 * place, {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "red"}]}
        )
    answer = {"role": "assistant", "content": f"Answer: {SHORT[5]['answer']}"}
    rows.append({"messages": [{"role": "user", "content": SHORT[5]["prompt"].lower()}, answer]})
    return write_rows(path, rows)


def leak(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": ITEMS[number]["question"]}]}


def lines_of(run: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in (run / "contamination.jsonl").read_text().splitlines()]
    return {line["task"]: line for line in found}


def numbers(line: dict[str, Any]) -> list[int]:
    return sorted(int(touched["id"].split(":")[0]) for touched in line["touched"])


@pytest.fixture
def family(tmp_path: Path, make_run: MakeRun) -> tuple[Path, Path]:
    """A run whose data holds items, and a child of it, trained on clean data."""
    base, child = make_run((1,), name="base"), make_run((2,), name="child")
    trained_on(base, leaky(tmp_path / "sft.jsonl"))
    trained_on(child, write_rows(tmp_path / "more.jsonl", FILLER), base)
    return base, child


def test_a_planted_leak_is_found_whole_and_the_clean_score_is_over_the_rest(
    tmp_path: Path, family: tuple[Path, Path], make_run: MakeRun
) -> None:
    base, child = family
    clean = make_run((3,), name="unrelated")
    trained_on(clean, tmp_path / "more.jsonl")
    said: list[str] = []
    score([base, child, clean], suite_file(tmp_path / "suite"), device="cpu", progress=said.append)
    for run in family:
        lines = lines_of(run)
        assert numbers(lines["places"]) == list(LEAKS)
        assert numbers(lines["sums"]) == [5]
        assert lines["places"]["touched"][0]["row"].endswith("sft.jsonl:1")
        assert {touched["run"] for touched in lines["places"]["touched"]} == {"base"}
        assert lines["places"]["unseen"] == []
    assert len(lines_of(child)["places"]["sources"]) == 2
    assert not lines_of(clean)["places"]["touched"]
    assert "base: places: 4 of 60 items are in the training data" in said

    board = build([base, child, clean])
    whole, left = (column for column in board.columns if column.task == "places")
    assert (whole.name, left.name) == ("places", "places (clean)")
    for row in board.rows:
        cell = row.cells[left.id]
        [file] = (tmp_path / board.run_of(row).name / "samples").glob(f"{str(row.model_hash)[:12]}-places*")
        table = pq.read_table(file)
        values = np.array(table.column(f"metric.{left.primary.name}").to_pylist())
        kept = [n for n in range(60) if n not in LEAKS or board.run_of(row).name == "unrelated"]
        figure = cell.figures[0]
        assert (figure.value, figure.n) == (pytest.approx(values[kept].mean()), len(kept))
        assert figure.interval is not None
    # Rows with other items left out are compared on those that both keep.
    assert {d.n for d in board.differences if d.column == left.id} == {56}
    for text in (to_html(board), to_markdown(board)):
        assert "Test items in training data" in text
        assert "r17 has 17 of the" in text
    assert not any("several ways" in notice.text for notice in board.notices)


def test_what_was_found_once_is_not_looked_for_again_until_data_or_task_change(
    tmp_path: Path, family: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, child = family
    suite = suite_file(tmp_path / "suite")
    score([child], suite, device="cpu")
    before = (child / "contamination.jsonl").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("posttrain.evals.contamination._look", None)
        score([child], suite, device="cpu")
    assert (child / "contamination.jsonl").read_bytes() == before
    old = [json.loads(line) | {"version": 3, "touched": []} for line in before.splitlines()]  # Indic words lost marks
    write_rows(child / "contamination.jsonl", old)
    score([child], suite, device="cpu")
    assert numbers(lines_of(child)["places"]) == list(LEAKS), "what other words found says nothing"
    write_rows(tmp_path / "more.jsonl", [*FILLER, leak(7)])  # what child was trained on is there in part
    trained_on(child, tmp_path / "more.jsonl", family[0])
    score([child], suite, device="cpu")
    assert numbers(lines_of(child)["places"]) == sorted([7, *LEAKS]), "data that is new is looked through"


def test_what_was_found_once_stands_when_the_data_is_gone(tmp_path: Path, family: tuple[Path, Path]) -> None:
    _, child = family
    suite, sft, more = suite_file(tmp_path / "suite"), tmp_path / "sft.jsonl", tmp_path / "more.jsonl"
    score([child], suite, device="cpu")
    before, trained = lines_of(child), sft.read_bytes()
    write_rows(sft, FILLER)  # no longer what base was trained on
    more.unlink()
    said: list[str] = []
    score([child], suite, device="cpu", progress=said.append)
    line = lines_of(child)["places"]
    assert line["touched"] == before["places"]["touched"]
    assert [line[key] for key in ("unseen", "items", "rows")] == [[], 60, before["places"]["rows"]]
    gone, changed = line["seen_before"]
    assert gone.startswith(f"{more} of child cannot be read")
    assert changed == f"{sft} has changed since base was trained on it"
    page = to_html(build([child]))
    assert f"looked through before: {more} of child cannot be read" in page
    assert "places (clean)" in page
    sft.write_bytes(trained)
    write_rows(more, FILLER)
    score([child], suite, device="cpu")
    assert lines_of(child) == before, "data that is back leaves nothing to be said"
    # Trained anew on other rows, the run has not seen what its former self had.
    trained_on(child, write_rows(tmp_path / "other.jsonl", FILLER[:50]))
    score([child], suite, device="cpu")
    assert not lines_of(child)["places"]["touched"]


def test_data_that_breaks_off_is_named_and_looked_through_again(
    tmp_path: Path, family: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = family
    suite = suite_file(tmp_path / "suite")

    def broken(source: SourceSpec, folder: Path) -> Iterator[Row]:
        yield from islice(read_rows(source, folder), 50)
        raise DataError("the disk is sick")

    with monkeypatch.context() as patched:
        patched.setattr("posttrain.evals.contamination.read_rows", broken)
        patched.setattr("posttrain.evals.contamination._BATCH", 25)
        score([base], suite, device="cpu")
        torn = lines_of(base)["places"]
        score([base], suite, device="cpu")
        assert lines_of(base)["places"] == torn
    assert torn["unseen"] == [f"{tmp_path}/sft.jsonl of base cannot be read whole: the disk is sick"]
    assert (numbers(torn), torn["rows"]) == ([3, 17, 31], 0)
    score([base], suite, device="cpu")
    line = lines_of(base)["places"]
    assert (numbers(line), line["unseen"]) == (list(LEAKS), [])


def test_each_source_counts_whatever_hashes_the_record_lacks(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run((1,), name="run")
    files = [write_rows(tmp_path / name, FILLER) for name in ("a.jsonl", "b.jsonl")]
    recipe = {"recipe": {"data": {"train": [{"path": str(file), "format": "messages"} for file in files]}}}
    for contents in ([], [content_hash(SourceSpec(path=str(files[0])), Path())]):
        trained_on(run, files[0], None, **recipe, data={"train": {"contents": contents}})
        found = training_data(run)
        assert [source.source.path for source in found.readable] == [str(file) for file in files]
        assert found.unseen == tuple(f"that {file} is what run was trained on cannot be proved" for file in files)


def test_what_cannot_be_seen_is_said_and_never_called_clean(tmp_path: Path, make_run: MakeRun) -> None:
    run, data = make_run((1,), name="run"), write_rows(tmp_path / "more.jsonl", FILLER)
    assert training_data(run).unseen == ("what run was trained on is unknown",)
    trained_on(run, tmp_path / "gone.jsonl")
    [gone] = training_data(run).sources
    assert str(gone.problem).startswith(f"{tmp_path}/gone.jsonl of run cannot be read")
    trained_on(run, data, None, data={"train": {"fingerprint": "x"}})
    found = training_data(run)
    assert found.unseen == (f"that {data} is what run was trained on cannot be proved",)
    assert len(found.sources) == 1
    trained_on(run, data)
    found = training_data(run, most_bytes=10)
    assert (found.readable, str(found.sources[0].problem)[:6]) == ([], "0.0 GB")
    moved = {"recipe": {"data": {"train": [{"path": "@step/more.jsonl"}]}}, "references": {"step": str(tmp_path)}}
    trained_on(run, data, None, **moved)
    assert training_data(run).unseen == ()
    assert len(training_data(run).readable) == 1
    trained_on(run, data, None, parent={"name": "org/model", "path": None})
    assert training_data(run).unseen == ("what org/model was trained on is unknown",)


def test_no_items_are_made_where_no_training_data_can_be_read(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HarnessTask, "items", lambda self: pytest.fail("a task of MMLU takes a second to build"))
    run = make_run()
    assert not score([run], suite_file(tmp_path / "suite")).failed
    lines = lines_of(run)
    assert lines.keys() == {"places", "sums"}
    assert all(line["unseen"] and not line["touched"] for line in lines.values())


def test_a_suite_that_says_never_looks_for_nothing(tmp_path: Path, family: tuple[Path, Path]) -> None:
    score([family[0]], suite_file(tmp_path / "suite", "never"), device="cpu")
    assert not (family[0] / "contamination.jsonl").exists()


LONG = [{"text": f"{item(number)['question']} {item(number + 1)['question']}"} for number in range(20)]


@pytest.mark.parametrize("mean", ["centred", "micro"])
def test_the_mean_of_a_group_and_a_text_have_clean_scores_of_what_is_left(
    tmp_path: Path, make_run: MakeRun, mean: str
) -> None:
    base, other = make_run((1,), name="base"), make_run((2,), name="other")
    texts = {"role": "user", "content": LONG[7]["text"]}
    leaks = [leak(3), leak(17), leak(55), {"messages": [texts]}]  # 7 and 8 are parts of the text
    trained_on(base, write_rows(tmp_path / "sft.jsonl", [*FILLER, *leaks]))
    trained_on(other, write_rows(tmp_path / "more.jsonl", [*FILLER, leak(17)]))
    write_rows(tmp_path / "first.jsonl", ITEMS[:40])
    write_rows(tmp_path / "second.jsonl", ITEMS[40:])
    write_rows(tmp_path / "texts.jsonl", LONG)
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "tasks:\n"
        "  - {task: multiple_choice, name: first, data_files: {test: first.jsonl}, baseline: 0.25}\n"
        "  - {task: multiple_choice, name: second, data_files: {test: second.jsonl}, baseline: 0.5}\n"
        "perplexity:\n"
        "  - {name: texts, path: texts.jsonl}\n"
        f"groups: [{{name: both, tasks: [first, second], mean: {mean}}}]\n"
    )
    said: list[str] = []
    assert score([base, other], suite, device="cpu", progress=said.append).exit_code == 0
    board = build([base, other])
    clean = {column.task: column for column in board.columns if column.clean}
    assert set(clean) == {"first", "second", "both", "texts"}
    touched = {"base": {3, 7, 8, 17, 55}, "other": {17}}
    kept: dict[str, list[np.ndarray]] = {}
    for row in board.rows:
        run = board.run_of(row).name
        kept[run] = []
        for task, numbers_ in (("first", range(40)), ("second", range(40, 60))):
            values = values_of(tmp_path / run, task, "metric.acc")
            left = [number not in touched[run] for number in numbers_]
            kept[run].append(values[left])
        figure = row.cells[clean["both"].id].figures[0]
        expected = group_mean(mean, kept[run], [0.25, 0.5])
        assert (figure.value, figure.n) == (pytest.approx(expected.value), 60 - len(touched[run]))
        assert figure.stderr == pytest.approx(expected.stderr, rel=0.05)
        nll, size, document = (values_of(tmp_path / run, "texts", key) for key in ("nll", "bytes", "document"))
        left = document != 7 if run == "base" else document >= 0
        figure = row.cells[clean["texts"].id].figures[0]
        assert figure.value == pytest.approx(nll[left].sum() / size[left].sum() / np.log(2))
    # Two rows that leave out different items are compared by the mean over those that both keep.
    [found] = [one for one in board.pairs if one.column == clean["both"].id]
    first, second = board.row(found.row), board.row(found.against)
    shared = [
        group_mean(
            mean,
            [
                values_of(tmp_path / board.run_of(row).name, task, "metric.acc")[
                    [number not in touched["base"] for number in numbers_]
                ]
                for task, numbers_ in (("first", range(40)), ("second", range(40, 60)))
            ],
            [0.25, 0.5],
        )
        for row in (first, second)
    ]
    assert (found.value, found.n) == (pytest.approx(shared[0].value - shared[1].value), 55)


def values_of(run: Path, task: str, column: str) -> np.ndarray:
    [file] = (run / "samples").glob(f"*-{task}-*")
    return np.array(pq.read_table(file).column(column).to_pylist())


def test_rows_of_classifiers_and_reward_models_are_items_too(tmp_path: Path, tiny_model_dir: Path) -> None:
    pairs = [{"prompt": row["question"], "chosen": " red.", "rejected": " a fish."} for row in ITEMS[:20]]
    labelled = [{"text": row["question"], "label": "ab"[n % 2]} for n, row in enumerate(ITEMS[:20])]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    write_rows(tmp_path / "rows.jsonl", labelled)
    runs = {
        "pairs": save_run(tmp_path / "rm", headed_model(tiny_model_dir, 1), tiny_model_dir),
        "classification": save_run(
            tmp_path / "topics", headed_model(tiny_model_dir, 2, names=["a", "b"]), tiny_model_dir
        ),
    }
    for (kind, run), file in zip(runs.items(), ("pairs.jsonl", "rows.jsonl"), strict=True):
        suite = tmp_path / f"{kind}.yaml"
        suite.write_text(f"{kind}: [{{name: {kind}, path: {file}}}]\n")
        trained_on(run, write_rows(tmp_path / "sft.jsonl", [*FILLER, leak(4), leak(9)]))
        assert score([run], suite, device="cpu").exit_code == 0
        board = build([run])
        whole, clean = board.columns
        [row] = board.rows
        margins = values_of(run, kind, "margin") > 0 if kind == "pairs" else None
        right = values_of(run, kind, "label") == values_of(run, kind, "prediction") if margins is None else margins
        left = [number not in (4, 9) for number in range(20)]
        assert row.cells[clean.id].figures[0].value == pytest.approx(right[left].mean())
        assert row.cells[whole.id].figures[0].value == pytest.approx(right.mean())
        # Where rows were dropped, a number tells no item.
        samples = next((run / "samples").iterdir())
        pq.write_table(pq.read_table(samples).slice(0, 10), samples)
        [only] = build([run]).columns
        assert f"none is left: {only.task}." in to_html(build([run]))


def test_a_clean_score_of_several_pairs_a_prompt_is_as_uncertain_as_the_score_on_all(tmp_path: Path) -> None:
    prompts = np.repeat(np.arange(20), 10)  # all pairs of a prompt are right, or none is
    margins = np.where(prompts % 4 > 0, 1.0, -1.0)
    accuracy = next(metric for metric in figures(margins, prompts)[0] if metric.name == "accuracy")
    line = report_fixtures.score("final", 1, "pairs", vars(accuracy), weights_hash="w")
    run = report_fixtures.make_run(tmp_path / "rm", "rm", [line])
    texts = {name: [f"{name} {n}" for n in range(200)] for name in ("chosen", "rejected")}
    samples = run / samples_name("w", "pairs", line["task_hash"])
    samples.parent.mkdir()
    samples.write_bytes(parquet({"prompt": [str(n) for n in prompts], "margin": margins} | texts))
    touched = {"task": "pairs", "task_hash": line["task_hash"], "items": 200, "touched": [{"id": "7"}]}
    write_rows(run / "contamination.jsonl", [touched])
    [row] = build([run]).rows
    whole, clean = (cell.figures[0] for cell in row.cells.values())
    assert (whole.n, clean.n) == (200, 199)
    assert clean.stderr == pytest.approx(whole.stderr, rel=0.02)
    assert clean.interval is not None
    assert clean.interval.method == "bounded"  # not that of 199 independent pairs


def test_what_was_not_looked_for_is_said(tmp_path: Path, family: tuple[Path, Path]) -> None:
    base, _ = family
    suite = suite_file(tmp_path / "suite")
    (tmp_path / "suite" / "own.py").write_text("def length(model, tokenizer, step):\n    return 3.0\n")
    with suite.open("a") as file:
        file.write("functions: [{name: own, function: own.py:length}]\n")
    score([base], suite, device="cpu")
    assert "Not looked for: the items of own." in to_html(build([base]))
    trained_on(base, tmp_path / "gone.jsonl")
    (base / "contamination.jsonl").unlink()
    score([base], suite, device="cpu")
    page = to_markdown(build([base]))
    assert page.count("gone.jsonl of base cannot be read") == 1, "said once, not for each task"
