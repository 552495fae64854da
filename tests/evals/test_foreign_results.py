"""Results of other harnesses as rows: read as they are written, compared only where their items are seen."""

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals import definitions
from posttrain.evals.foreign_results import read_results
from posttrain.evals.report import Leaderboard, build
from posttrain.evals.report.board import BoardRow, Column
from posttrain.evals.score import score
from posttrain.evals.suite_files import load_suite

from .report_fixtures import make_run, share
from .report_fixtures import score as line_of


def lm_eval_results(folder: Path, suite_file: Path, model_dir: Path, name: str = "theirs") -> Path:
    """What lm-eval's own evaluator and writer make of the suite's first task."""
    from lm_eval import evaluator
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models import huggingface
    from transformers import AutoModelForCausalLM, AutoTokenizer

    suite = load_suite(suite_file)
    task = definitions.build(definitions.define(suite.tasks[0], suite))
    stock: Any = huggingface.HFLM
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="float32")
    lm = stock(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(model_dir), batch_size=1, max_length=64)
    results: Any = evaluator.evaluate(lm, {"choices": task}, bootstrap_iters=10)
    samples = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args("hf", f"pretrained={name}", None, None, False)
    config = {"model": "hf", "model_args": f"pretrained={name}", "limit": None}
    tracker.save_results_aggregated(results | {"config": config, "lm_eval_version": "0.4.13", "date": 1.8e9}, samples)
    tracker.save_results_samples("choices", samples["choices"])
    [file] = (folder / name).glob("results_*.json")
    return file


def row_of(board: Leaderboard, name: str) -> BoardRow:
    return next(row for row in board.rows if board.run_of(row).name == name)


def changed(path: Path, **keys: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return path


def test_lm_eval_on_the_same_items_stands_in_our_column_and_is_compared_by_item(
    make_run: Callable[..., Path], suite_file: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    run = make_run((1,))
    score([run], suite_file)
    file = lm_eval_results(tmp_path / "out", suite_file, tiny_model_dir)
    board = build([run, file])
    theirs = row_of(board, "theirs")
    assert [badge.text for badge in theirs.badges] == ["lm-eval 0.4.13"]
    assert board.run_of(theirs).stage == "foreign"
    [identity] = theirs.cells
    column = next(column for column in board.columns if column.id == identity)
    assert (column.task, column.variant) == ("choices", "")
    assert len([row for row in board.rows if identity in row.cells]) == 2
    [difference] = [d for d in board.differences if d.row == theirs.id]
    assert (difference.method, difference.n) == ("paired", 4)
    assert any("rows differ in harness" in notice.text for notice in board.notices)
    # the same from a folder, and from the same bytes
    again = build([run, tmp_path / "out"])
    assert [row.cells for row in again.rows] == [row.cells for row in board.rows]


def test_without_samples_or_with_other_items_the_figure_has_a_column_of_its_own_and_no_verdict(
    make_run: Callable[..., Path], suite_file: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    run = make_run((1,))
    score([run], suite_file)
    file = lm_eval_results(tmp_path / "out", suite_file, tiny_model_dir)
    [samples] = file.parent.glob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    for key, value in (("target", "1"), ("doc_hash", "0" * 64)):
        samples.write_text("".join(json.dumps(row | {key: value}) + "\n" for row in rows))
        assert "lm-eval" in own_column(build([run, file])).variant
    changed_prompt = [
        row | {"arguments": {name: argument | {"arg_0": "Say:"} for name, argument in row["arguments"].items()}}
        for row in rows
    ]
    samples.write_text("".join(json.dumps(row) + "\n" for row in changed_prompt))
    assert "lm-eval" in own_column(build([run, file])).variant
    samples.unlink()
    board = build([run, file])
    column, theirs = own_column(board), row_of(board, "theirs")
    figure = theirs.figure(column)
    assert figure is not None
    assert (figure.n, figure.standing, figure.interval is not None) == (4, None, True)
    assert not [d for d in board.differences if d.row == theirs.id]
    assert theirs.badges[0].detail.endswith("the items of 0 of 1 figures are known, and only those are compared")


@pytest.mark.parametrize(
    "said", [{"sampling": {"name": "hot", "temperature": 1.5}}, {"changes": ["generation settings"]}]
)
def test_answers_under_settings_of_our_own_share_no_column_with_those_under_the_task_s(
    make_run: Callable[..., Path], suite_file: Path, tiny_model_dir: Path, tmp_path: Path, said: dict[str, Any]
) -> None:
    run = make_run((1,))
    score([run], suite_file)
    lines = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    lines = [line | {"detail": line["detail"] | said} for line in lines if line["task"] == "choices"]
    (run / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    board = build([run, lm_eval_results(tmp_path / "out", suite_file, tiny_model_dir)])
    assert "lm-eval" in own_column(board).variant
    assert not board.differences


def own_column(board: Leaderboard) -> Column:
    """Returns the column of the other harness's figure, which none of ours is in."""
    [identity] = row_of(board, "theirs").cells
    assert sum(identity in row.cells for row in board.rows) == 1
    return next(column for column in board.columns if column.id == identity)


def lm_eval_file(folder: Path, right: list[int], second: int, model: str = "m", **config: Any) -> Path:
    """A file of lm-eval's, and the samples beside it, of a task that is answered in words."""
    folder.mkdir(exist_ok=True)
    mean, n = sum(right) / len(right), len(right)
    results = {"sums": {"exact_match,none": mean, "exact_match_stderr,none": (mean * (1 - mean) / (n - 1)) ** 0.5}}
    values = {"results": results, "configs": {"sums": {"output_type": "generate_until"} | config}, "date": second}
    values |= {"config": {"model": "hf", "model_args": f"pretrained={model}"}, "lm_eval_version": "0.4.13"}
    rows = [
        {"doc_id": i, "doc": {"q": i}, "target": "1", "arguments": {"gen_args_0": {"arg_0": f"{i}?", "arg_1": {}}}}
        | {"resps": [["1"]], "filtered_resps": ["1"], "filter": "none", "exact_match": value}
        for i, value in enumerate(right)
    ]
    date = f"2026-11-01T10-00-{second:02}.5"
    (folder / f"samples_sums_{date}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"results_{date}.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("key", ["generation_kwargs", "filter_list"])
def test_tasks_of_lm_eval_that_make_or_read_answers_otherwise_share_no_column(tmp_path: Path, key: str) -> None:
    first = lm_eval_file(tmp_path, [0, 1] * 20, 1, "a", **{key: "greedy"})
    assert len(build([first, lm_eval_file(tmp_path, [1] * 40, 2, "b", **{key: "greedy"})]).differences) == 1
    board = build([first, lm_eval_file(tmp_path, [1] * 40, 3, "b", **{key: "another"})])
    assert len(board.columns) == 2
    assert not board.differences


def test_a_function_that_lm_eval_names_by_its_address_is_the_same_in_another_process(tmp_path: Path) -> None:
    steps = [[{"name": "code", "filter": [{"filter_fn": f"<function build at 0x7f02fe5{n}>"}]}] for n in (1, 2)]
    files = [lm_eval_file(tmp_path, [0, 1] * 20, n, "ab"[n - 1], filter_list=steps[n - 1]) for n in (1, 2)]
    assert len(build(files).columns) == 1


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_files_about_one_measurement_the_newest_stands_with_its_items(tmp_path: Path, order: int) -> None:
    other = lm_eval_file(tmp_path, [0, 1] * 20, 1, "other")
    twice = [lm_eval_file(tmp_path, [0] * 20 + [1] * 20, 2), lm_eval_file(tmp_path, [0] + [1] * 39, 3)]
    board = build([other, *twice[::order]])
    [column] = board.columns
    row = row_of(board, "m")
    [figure] = row.cells[column.id].figures
    assert (figure.value, row.cells[column.id].score["notes"][-1]) == (39 / 40, "scored 2 times; the newest is shown")
    assert [difference.method for difference in board.differences] == ["paired"]
    assert not board.notices


def old_results(folder: Path, name: str, acc: float) -> Path:
    """As versions of lm-eval before 0.4 wrote them: without filters, numbers of items, or samples."""
    folder.mkdir(exist_ok=True)
    results = {"arc_easy": {"acc": acc, "acc_stderr": 0.01}, "lambada": {"ppl": 100 * acc, "ppl_stderr": 1.0}}
    config = {"model": "hf-causal", "model_args": f"pretrained={name},revision=main", "num_fewshot": 0, "limit": None}
    versions = {"arc_easy": 0, "lambada": 0}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"results": results, "versions": versions, "config": config}))
    return path


def test_of_figures_without_items_none_is_the_best_however_large(tmp_path: Path) -> None:
    ours = make_run_of(tmp_path / "ours")
    files = [old_results(tmp_path, name, acc) for name, acc in (("small", 0.3), ("large", 0.99))]
    board = build([ours, *files])
    assert board.row(str(board.baseline)).run == row_of(board, "ours").run
    small, large = row_of(board, "small"), row_of(board, "large")
    assert set(small.cells) == set(large.cells)
    assert not set(small.cells) & set(row_of(board, "ours").cells)
    for cell in large.cells.values():
        assert (cell.figures[0].standing, cell.tier) == (None, None)
    directions = {cell.figures[0].metric: cell.figures[0].higher_is_better for cell in large.cells.values()}
    assert directions == {"acc": True, "ppl": False}
    assert not board.differences
    assert not board.pairs
    assert board.headline is not None
    assert board.headline.row == row_of(board, "ours").id
    assert build(files).headline is None


def make_run_of(folder: Path) -> Path:
    # limited: a column of which all is known comes before one that is whole and of which nothing is
    return make_run(folder, "ours", [line_of("final", 5, "arc_easy", share(50, 200), limit=200)])


def test_several_files_about_a_model_are_one_row_and_two_models_of_a_name_are_two(tmp_path: Path) -> None:
    first = old_results(tmp_path, "small", 0.3)
    second = changed(old_results(tmp_path / "b", "small", 0.3), results={"piqa": {"acc": 0.6, "acc_stderr": 0.01}})
    arguments = {"model": "hf-causal", "model_args": "pretrained=small,revision=step1", "num_fewshot": 0}
    other = changed(old_results(tmp_path / "c", "small", 0.2), config=arguments)
    board = build([first, second, other])
    assert sorted(len(row.cells) for row in board.rows) == [2, 3]


def annotations(path: Path, model: str, preferences: list[Any], judge: str = "gpt4") -> Path:
    rows = [
        {"instruction": f"Ask {n}", "output_1": "a", "generator_1": "base", "output_2": "b", "generator_2": model}
        | {"annotator": judge, "preference": preference}
        for n, preference in enumerate(preferences)
    ]
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    return path


def test_annotations_of_alpaca_eval_are_win_rates_compared_by_instruction(tmp_path: Path) -> None:
    strong = annotations(tmp_path / "strong.json.gz", "strong", [None, *[2, 1.9, 2, 1, 1.5, 1.5] * 20][:120])
    weak = annotations(tmp_path / "weak.json.gz", "weak", [1, 1.2, 1, 1, 0, 1] * 20)
    board = build([strong, weak])
    [column] = board.columns
    assert (column.task, column.metrics[0].unit, column.variant) == ("alpaca_eval", "%", "gpt4 against base")
    figures = {board.run_of(row).name: row.figure(column) for row in board.rows}
    assert {name: (figure.n, round(figure.value or 0, 6)) for name, figure in figures.items() if figure} == {
        "strong": (119, round(77.5 / 119, 6)),  # 1, .9, 1, 0 and two ties, the last once less
        "weak": (120, round((0.2 + 0.5) / 6, 6)),
    }
    [pair] = board.pairs
    assert (pair.method, pair.n, pair.verdict) == (
        "paired",
        119,
        "worse" if pair.row == row_of(board, "weak").id else "better",
    )
    assert "1 verdicts could not be read" in str(row_of(board, "strong").cells[column.id].score["notes"])


def test_a_leaderboard_of_alpaca_eval_has_a_row_for_each_model(tmp_path: Path) -> None:
    path = tmp_path / "weighted_gpt4_leaderboard.csv"
    head = ",win_rate,standard_error,n_total,avg_length,length_controlled_winrate,lc_standard_error"
    path.write_text(f"{head}\nlarge,60.5,1.5,805,2000,58.25,0.5\nsmall,4.0,0.7,805,1000,,\n")
    board = build([path])
    [column] = board.columns
    large = row_of(board, "large").cells[column.id]
    assert [(f.metric, f.value, f.stderr) for f in large.figures] == [
        ("win_rate", 0.605, 0.015),
        ("win_rate_length_controlled", 0.5825, 0.005),
    ]
    assert large.figures[0].standing is None
    assert column.judge is not None
    assert column.judge.startswith("weighted_gpt4 ")


def inspect_log(values: list[str], model: str = "openai/x") -> dict[str, Any]:
    samples = [
        {"id": n, "epoch": 1, "input": f"What is {n}?", "target": str(n), "scores": {"match": {"value": value}}}
        for n, value in enumerate(values)
    ]
    mean = values.count("C") / len(values)
    metrics = {"accuracy": {"name": "accuracy", "value": mean}, "stderr": {"name": "stderr", "value": 0.1}}
    spec = {"task": "inspect_evals/sums", "task_version": 0, "model": model, "created": "2026-01-02T00:00:00+00:00"}
    spec |= {"dataset": {"name": "sums"}, "config": {"epochs": 1}, "packages": {"inspect_ai": "0.3.285"}}
    scores = [{"name": "match", "scorer": "match", "scored_samples": len(values), "metrics": metrics}]
    results = {"total_samples": len(values), "completed_samples": len(values), "scores": scores}
    return {"version": 2, "status": "success", "eval": spec, "results": results, "samples": samples}


def archive(path: Path, log: dict[str, Any], *, zstd: bool = False) -> Path:
    """Writes a log as inspect does: zstd, which zipfile before Python 3.14 can store but not pack."""
    members = {"header.json": {key: value for key, value in log.items() if key != "samples"}}
    members |= {f"samples/{sample['id']}_epoch_1.json": sample for sample in log["samples"]}
    members |= {"_journal/start.json": {}}
    with zipfile.ZipFile(path, "w") as file:
        for name, value in members.items():
            data = json.dumps(value).encode()
            file.writestr(name, pyarrow.Codec("zstd").compress(data, asbytes=True) if zstd else data)
    return _named_zstd(path, [json.dumps(value).encode() for value in members.values()]) if zstd else path


def _named_zstd(path: Path, contents: list[bytes]) -> Path:
    """Gives stored members the method, size and checksum of what zstd has packed."""
    import struct
    import zlib

    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        infos, start = file.infolist(), file.start_dir
    for info, content in zip(infos, contents, strict=True):
        checked = struct.pack("<I", zlib.crc32(content)), struct.pack("<I", len(content))
        local = info.header_offset
        data[local + 8 : local + 10] = struct.pack("<H", 93)
        data[local + 14 : local + 18], data[local + 22 : local + 26] = checked
        data[start + 10 : start + 12] = struct.pack("<H", 93)
        data[start + 16 : start + 20], data[start + 24 : start + 28] = checked
        start += 46 + len(info.filename)
    path.write_bytes(data)
    return path


def test_logs_of_inspect_are_read_packed_and_plain_and_compared_by_sample(tmp_path: Path) -> None:
    strong, weak = inspect_log(["C"] * 36 + ["I"] * 4, "openai/strong"), inspect_log(["C", "I", "I", "I"] * 10, "weak")
    packed = archive(tmp_path / "a.eval", strong, zstd=True)
    (tmp_path / "b.json").write_text(json.dumps(weak))
    board = build([packed, tmp_path / "b.json"])
    [column] = board.columns
    assert (column.name, column.metrics[0].name) == ("sums (inspect)", "accuracy")
    first = row_of(board, "openai/strong")
    assert first.badges[0].text == "inspect 0.3.285"
    figure = first.figure(column)
    assert figure is not None
    assert (figure.value, figure.n, figure.standing) == (0.9, 40, "best")
    [pair] = board.pairs
    assert (pair.method, pair.n) == ("paired", 40)
    [plain] = read_results(archive(tmp_path / "c.eval", strong))
    [zstd] = read_results(packed)
    assert (plain.scores[0].items, plain.scores[0].metrics) == (zstd.scores[0].items, zstd.scores[0].metrics)


def board_of_two_logs(tmp_path: Path, spec: dict[str, Any]) -> Any:
    """Returns the board of two models' logs of the same items, where one log says something else of its evaluation."""
    strong, weak = inspect_log(["C"] * 36 + ["I"] * 4, "strong"), inspect_log(["C", "I", "I", "I"] * 10, "weak")
    strong["eval"] |= spec
    for name, log in (("a.json", strong), ("b.json", weak)):
        (tmp_path / name).write_text(json.dumps(log))
    return build([tmp_path / "a.json", tmp_path / "b.json"])


@pytest.mark.parametrize(
    "spec",
    [
        {"task_args": {"fewshot": 10}},
        {"solver": "chain_of_thought"},
        {"solver": "generate", "solver_args": {"attempts": 3}},
        {"config": {"epochs": 2, "epochs_reducer": ["max"]}},
        {"model_roles": {"grader": {"model": "another"}}},
    ],
)
def test_logs_of_inspect_that_ask_or_score_the_same_items_otherwise_share_no_column(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    board = board_of_two_logs(tmp_path, spec)
    assert len(board.columns) == 2
    assert not board.pairs


@pytest.mark.parametrize(
    "spec",
    [
        {"task": "inspect_evals/sums"},
        {"dataset": {"name": "/home/bob/sums"}},
        {"task_args": {}, "solver_args": {}, "model_roles": {}},
        {"config": {"epochs": 1, "epochs_reducer": ["mean"]}},
    ],
)
def test_logs_of_inspect_are_compared_by_item_however_and_from_wherever_the_task_was_run(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    assert len(board_of_two_logs(tmp_path, spec).pairs) == 1


@pytest.mark.parametrize(
    ("total", "config", "limit"),
    [
        (40, {"limit": 1000}, None),
        (100, {"limit": [0, 40]}, 40),
        (100, {"sample_id": ["1"]}, 40),
        (None, {"limit": 9}, 9),
    ],
)
def test_a_log_of_inspect_is_limited_where_it_asked_fewer_items_than_there_are(
    tmp_path: Path, total: int | None, config: dict[str, Any], limit: int | None
) -> None:
    log = inspect_log(["C", "I"] * 20)
    log["eval"] |= {"dataset": {"samples": total}, "config": config | {"epochs": 2}}
    log["results"]["total_samples"] = 80
    (tmp_path / "a.json").write_text(json.dumps(log))
    [results] = read_results(tmp_path / "a.json")
    assert results.scores[0].limit == limit


def test_a_log_of_inspect_tells_ways_to_join_epochs_apart_and_errors_are_better_lower(tmp_path: Path) -> None:
    log = inspect_log(["C", "I"] * 20)
    [entry] = log["results"]["scores"]
    most = entry | {"reducer": "max", "metrics": {"accuracy": {"value": 0.8}, "wer": {"value": 0.2}}}
    log["results"]["scores"] = [entry | {"reducer": "mean"}, most]
    (tmp_path / "a.json").write_text(json.dumps(log))
    [column] = build([tmp_path / "a.json"]).columns
    assert {metric.name: metric.higher_is_better for metric in column.metrics} == {
        "accuracy,match,mean": True,
        "accuracy,match,max": True,
        "wer,match,max": False,
    }


def _nan(path: Path) -> None:
    values = json.loads(old_results(path.parent, "x", 0.5).read_text())
    values["results"]["arc_easy"]["acc"] = float("nan")
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("results_a.json", b'{"results": {"arc', "damaged, not JSON"),
        ("results_a.json", b"[" * 100_000, "damaged, not JSON"),
        ("results_a.json", b'{"loss": 1}', "not a file of results"),
        ("results_a.json", b'{"results": {}}', "holds no figures"),
        ("results_a.json", b'{"results": {"t": {"acc": 0.1}}, "date": 1e99}', "damaged: "),
        ("results_a.json", _nan, "arc_easy: acc is nan, no finite number"),
        ("results_a.json.gz", b"\x1f\x8b\x08 no gzip", "gzip"),
        ("samples_a.jsonl", b"{}", "samples are read with the results"),
        ("a.txt", b"", "not a file of results"),
        ("a.csv", b"model,score\nx,1\n", "not a leaderboard of AlpacaEval"),
        ("a.csv", b",win_rate,standard_error\nx,high,1\n", r"a.csv:2: 'high' is no number"),
        ("a.csv", b",win_rate,standard_error\nx,nan,1\n", r"win_rate is nan"),
        ("a.csv", b",win_rate,standard_error\nx,,1\n", r"a.csv:2: no win_rate"),
        ("outputs.json", b'[{"instruction": "a", "output": "b"}]', "holds answers, and no figures; score them"),
        (
            "annotations.json",
            b'[{"preference": 1}]',
            r"annotations.json\[0\]: no annotation of AlpacaEval: it lacks gen",
        ),
        ("a.eval", b"PK\x03\x04 torn", "damaged: "),
        ("a.json", json.dumps(inspect_log(["C"]) | {"status": "cancelled"}).encode(), "its status is cancelled"),
        ("a.json", json.dumps(inspect_log(["C"]) | {"samples": [{"id": 1}]}).encode(), "damaged: lacks 'input'"),
    ],
)
def test_a_file_that_is_wrong_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | Callable[[Path], None], what: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with pytest.raises(InputError, match=what) as caught:
        build([path])
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


def test_an_evaluation_that_did_not_end_and_a_file_that_is_not_there_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as file:
        file.writestr("_journal/start.json", "{}")
    with pytest.raises(InputError, match="the evaluation has not ended"):
        build([tmp_path / "a.eval"])
    with pytest.raises(InputError, match="no such"):
        build([tmp_path / "nothing.json"])


def test_samples_that_are_damaged_or_not_all_there_are_refused(
    suite_file: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    file = lm_eval_results(tmp_path / "out", suite_file, tiny_model_dir)
    [samples] = file.parent.glob("samples_*.jsonl")
    whole = samples.read_text()
    for content, what in (
        (whole[:-40], r"jsonl:4: damaged, not JSON"),
        ("".join(whole.splitlines(keepends=True)[:3]), "holds 3 items, and the results are over 4"),
        (whole.replace('"target"', '"aim"'), r"jsonl:1: damaged: lacks 'target'"),
        ("5\n" * 4, r"jsonl:1: damaged"),
    ):
        samples.write_text(content)
        with pytest.raises(InputError, match=what):
            build([file])


def test_results_over_the_limit_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_results(tmp_path, "small", 0.3)
    monkeypatch.setattr("posttrain.evals.result_files.MOST_BYTES", 50)
    with pytest.raises(InputError, match="more than any file of results has"):
        build([path])
