"""Checkpoints are scored once each, by their own weights, and one failure does not stop the rest."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.checkpoints import write_manifest
from posttrain.evals.errors import SuiteError
from posttrain.evals.records import ScoreStore
from posttrain.evals.runs import find_runs
from posttrain.evals.score import score
from posttrain.evals.stats.intervals import spelt
from posttrain.evals.suite_files import load_suite
from posttrain.recipes.cli import app
from typer.testing import CliRunner

from .conftest import add_checkpoint, write_rows, write_run_json

MakeRun = Callable[..., Path]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def figures(run: Path) -> dict[tuple[str, str], list[tuple[str, float]]]:
    return {(s.checkpoint, s.task): [(m.name, m.value) for m in s.metrics] for s in ScoreStore(run).load()}


def samples(run: Path, checkpoint: str, task: str) -> list[dict[str, Any]]:
    found = [s for s in ScoreStore(run).load() if (s.checkpoint, s.task) == (checkpoint, task)]
    return pq.read_table(run / found[0].samples_name).to_pylist()


def test_every_checkpoint_gets_every_task_once_and_a_second_call_does_nothing(make_run: MakeRun, suite_file: Path):
    run = make_run()
    report = score([run], suite_file, device="cpu")
    assert report.exit_code == 0
    assert report.failed == ()
    # the final model has the weights of the last checkpoint: one record stands for both
    expected = {(c, t) for c in ("checkpoint-1", "checkpoint-2") for t in ("choices", "sums", "lines")}
    assert set(figures(run)) == expected
    assert len(report.done) == 6
    before = (run / "scores.jsonl").read_bytes()
    again = score([run], suite_file, device="cpu")
    assert (again.done, again.failed) == ((), ())
    assert again.skipped == 9
    assert (run / "scores.jsonl").read_bytes() == before


def test_a_log_tells_now_and_then_how_far_a_task_is(
    make_run: MakeRun, suite_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from posttrain.data_tools import progress

    monkeypatch.setattr(progress, "EVERY", 0.0)
    score([make_run((1,))], suite_file, device="cpu")
    told = capsys.readouterr().err
    assert "choices: 12 of 12 continuations, " in told
    assert "sums: 4 of 4 answers, " in told


def test_a_score_says_what_was_measured_on_what(make_run: MakeRun, suite_file: Path):
    run, lines = make_run((5,), final=False), []
    score([run], suite_file, device="cpu", progress=lines.append)
    by_task = {s.task: s for s in ScoreStore(run).load()}
    one = by_task["choices"]
    assert all(
        any(f": {spelt(s.metrics[0])} (n={s.metrics[0].n}, " in line for line in lines) for s in by_task.values()
    )
    manifest = json.loads((run / "checkpoint-5" / "manifest.json").read_text())
    assert (one.run, one.run_id, one.checkpoint, one.step) == ("toy", "0123456789abcdef", "checkpoint-5", 5)
    assert one.weights_hash == manifest["weights"]
    assert (one.suite, one.num_fewshot, one.template_fingerprint) == ("toy", 0, None)
    assert one.metrics[0].name == "acc"
    assert one.metrics[0].n == 4
    assert one.metrics[0].stderr is not None
    assert {"lm-eval", "torch", "transformers"} <= set(one.versions)
    assert by_task["sums"].metrics[0].name == "exact_match"
    assert by_task["lines"].metrics[0].name == "bits_per_byte"
    row = samples(run, "checkpoint-5", "choices")[1]
    assert row["prompt"] == "Two and two make"
    assert row["options"] == [" five", " four", " the dog"]
    likelihoods = [json.loads(response)[0][0] for response in row["responses"]]
    assert row["metric.acc"] == float(likelihoods.index(max(likelihoods)) == 1)


def test_two_checkpoints_in_one_process_answer_for_themselves(make_run: MakeRun, suite_file: Path):
    run = make_run()
    score([run], suite_file, device="cpu")
    answers = {}
    for name in ("checkpoint-1", "checkpoint-2"):
        answers[name] = [row["responses"] for row in samples(run, name, "choices")]
        alone = run.parent / f"alone-{name}"
        shutil.copytree(run / name, alone / name)
        write_run_json(alone, "alone", finished=True)
        score([alone], suite_file, device="cpu")
        assert [row["responses"] for row in samples(alone, name, "choices")] == answers[name]
        assert figures(alone)[name, "lines"] == figures(run)[name, "lines"]
    assert all(one != other for one, other in zip(*answers.values(), strict=True))


def test_the_models_likelihoods_are_those_of_the_model(make_run: MakeRun, suite_file: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = make_run((1,), final=False)
    score([run], suite_file, device="cpu")
    row = samples(run, "checkpoint-1", "choices")[0]
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoint-1")
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "checkpoint-1")
    context = tokenizer(row["prompt"])["input_ids"]
    ids = torch.tensor([tokenizer(row["prompt"] + row["options"][0])["input_ids"]])
    assert ids[0, : len(context)].tolist() == context
    with torch.no_grad():
        log_p = model(ids).logits[0].log_softmax(-1)
    expected = sum(log_p[i - 1, ids[0, i]].item() for i in range(len(context), ids.shape[1]))
    assert json.loads(row["responses"][0])[0][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("dtype", "why"), [("float32", ""), ("bfloat16", ": bfloat16 rounds logits, and .*")])
def test_options_that_tie_are_told(make_run: MakeRun, suite_file: Path, dtype: str, why: str):
    rows = [{"question": f"The sky {n}", "choices": ["is", "is"], "answer": 0} for n in range(2)]
    write_rows(suite_file.parent / "choices.jsonl", rows)
    suite_file.write_text(f"dtype: {dtype}\n" + suite_file.read_text())
    run = make_run((1,))
    score([run], suite_file, device="cpu")
    notes = {one.task: one.notes for one in ScoreStore(run).load()}
    told = [note for note in notes["choices"] if re.fullmatch(f"in 2 of 2 items several options .* counts{why}", note)]
    assert len(told) == 1
    assert not any("likeliest" in note for note in (*notes["sums"], *notes["lines"]))


def test_a_new_task_is_scored_without_the_old_ones_again(make_run: MakeRun, suite_file: Path):
    run = make_run((1,), final=False)
    score([run], suite_file, device="cpu")
    text = suite_file.read_text().replace(
        "tasks:\n", "tasks:\n  - {task: multiple_choice, name: new, data_files: {test: choices.jsonl}, limit: 2}\n"
    )
    suite_file.write_text(text)
    report = score([run], suite_file, device="cpu")
    assert [s.task for s in report.done] == ["new"]
    assert (report.done[0].metrics[0].n, report.done[0].limit) == (2, 2)
    assert len({s.suite_version for s in ScoreStore(run).load()}) == 2


@pytest.mark.parametrize(("limit", "of_lines"), [(4, 4), (99, None)])
def test_a_limit_that_leaves_nothing_out_is_none(make_run: MakeRun, suite_file: Path, limit: int, of_lines: int | None):
    done = score([make_run((1,), final=False)], load_suite(suite_file, limit=limit), device="cpu").done
    assert {s.task: s.limit for s in done} == {"choices": None, "sums": None, "lines": of_lines}
    assert "a limit" not in [change for s in done for change in (s.detail or {}).get("changes", ())]


def test_one_task_that_fails_is_named_and_the_others_go_on(make_run: MakeRun, suite_file: Path):
    (suite_file.parent / "prompts.jsonl").write_text('{"prompt": "a"}\n')  # no answer column
    run = make_run((1,), final=False)
    report = score([run], suite_file, device="cpu")
    assert [(failure.checkpoint, failure.task) for failure in report.failed] == [("toy/checkpoint-1", "sums")]
    assert report.exit_code == 1
    assert {s.task for s in report.done} == {"choices", "lines"}


def test_more_tokens_than_a_model_was_made_for_are_noted_and_refused_where_it_has_no_places_for_them(
    tiny_model_dir: Path, suite_file: Path, tmp_path: Path
):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    suite_file.write_text("max_length: 300\n" + suite_file.read_text())
    noted = score([tiny_model_dir], suite_file, device="cpu", output=tmp_path / "rotary")
    said = "max_length is 300, and the model was made for 256; say 256 or less"
    assert [said in one.notes for one in noted.done] == [True] * 3
    refused = score([tmp_path / "gpt2"], suite_file, device="cpu", output=tmp_path / "learned")
    assert [failure.reason for failure in refused.failed] == [said.replace("256", "128")] * 3
    assert refused.exit_code == 2


def test_a_damaged_checkpoint_is_reported_and_left(make_run: MakeRun, suite_file: Path):
    run = make_run()
    weights = run / "checkpoint-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    report = score([run], suite_file, device="cpu")
    assert [(failure.checkpoint, failure.task) for failure in report.failed] == [("toy/checkpoint-1", None)]
    assert "model.safetensors" in report.failed[0].reason
    assert {checkpoint for checkpoint, _ in figures(run)} == {"checkpoint-2"}


@pytest.mark.parametrize("draws", ["", ", sampling: {name: hot, temperature: 1.0}"])
def test_a_model_that_computes_nan_gets_no_score_of_any_kind(make_run: MakeRun, suite_file: Path, draws: str):
    from safetensors.torch import load_file, save_file

    run = make_run((1,), final=False)
    folder = run / "checkpoint-1"
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_manifest(folder, step=1, resumable=True)
    suite_file.write_text(suite_file.read_text().replace("max_gen_toks: 4}", f"max_gen_toks: 4}}{draws}"))
    report = score([run], suite_file, device="cpu")
    assert report.done == ()  # the first option would be the likeliest, the first token the answer
    assert [failure.task for failure in report.failed] == ["choices", "sums", "lines"]
    assert all("do the weights hold NaN?" in failure.reason and not failure.detail for failure in report.failed)


def test_weights_that_were_swapped_do_not_take_the_old_scores(make_run: MakeRun, suite_file: Path):
    run = make_run()
    shutil.copy(run / "checkpoint-2" / "model.safetensors", run / "checkpoint-1" / "model.safetensors")
    report = score([run], suite_file, device="cpu")
    assert "has changed since it was saved" in report.failed[0].reason


def test_a_checkpoint_without_optimizer_state_is_scored_all_the_same(make_run: MakeRun, suite_file: Path):
    run = make_run((1,), final=False)
    (run / "checkpoint-1" / "optimizer.pt").unlink()
    assert len(score([run], suite_file, device="cpu").done) == 3


def test_a_save_that_has_not_ended_is_left_for_later(make_run: MakeRun, suite_file: Path):
    run = make_run()
    (run / "checkpoint-2" / "manifest.json").unlink()
    (run / "manifest.json").unlink()
    report = score([run], suite_file, device="cpu")
    assert [item.folder.name for item in report.unfinished] == ["checkpoint-2"]
    assert report.failed == ()
    assert {checkpoint for checkpoint, _ in figures(run)} == {"checkpoint-1"}


def test_watching_scores_what_training_saves_until_it_is_finished(
    make_run: MakeRun, suite_file: Path, tiny_model_dir: Path
):
    run = make_run((1,), finished=False, final=False)

    def train_on(line: str) -> None:
        if "lines" in line and not (run / "checkpoint-2").exists():
            add_checkpoint(run, 2, tiny_model_dir)
        elif "checkpoint-2: lines" in line:
            write_run_json(run, "toy", finished=True)

    report = score([run], suite_file, device="cpu", watch=True, poll_seconds=0.01, progress=train_on)
    assert {s.checkpoint for s in report.done} == {"checkpoint-1", "checkpoint-2"}
    assert not report.interrupted


def test_ctrl_c_ends_a_watch_and_keeps_what_was_scored(make_run: MakeRun, suite_file: Path):
    run = make_run((1,), finished=False, final=False)

    def interrupt(line: str) -> None:
        if "choices" in line:
            raise KeyboardInterrupt

    report = score([run], suite_file, device="cpu", watch=True, progress=interrupt)
    assert report.interrupted
    assert [s.task for s in ScoreStore(run).load()] == ["choices"]


def test_the_template_is_applied_where_the_tokenizer_has_one(make_run: MakeRun, suite_file: Path, tmp_path: Path):
    from posttrain.evals.checkpoints import write_manifest
    from transformers import AutoTokenizer

    run = make_run((1, 2), final=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "checkpoint-2")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(run / "checkpoint-2")
    write_manifest(run / "checkpoint-2", step=2, resumable=True)
    score([run], suite_file, device="cpu")
    templates = {(s.checkpoint, s.task): s.template_fingerprint for s in ScoreStore(run).load()}
    assert templates["checkpoint-1", "sums"] is None
    assert templates["checkpoint-2", "lines"] is None
    assert templates["checkpoint-2", "sums"] is not None
    prompts = {name: samples(run, name, "sums")[3]["prompt"] for name in ("checkpoint-1", "checkpoint-2")}
    assert prompts["checkpoint-1"] == "3 and 3 make"
    assert prompts["checkpoint-2"] == "<|im_start|>user\n3 and 3 make<|im_end|>\n<|im_start|>assistant\n"
    always = load_suite(suite_file).model_copy(update={"chat": "always"})
    report = score([run / "checkpoint-1"], always, device="cpu")
    assert {failure.task for failure in report.failed} == {"choices", "sums"}
    assert "no chat template" in report.failed[0].reason


def test_an_adapter_is_scored_with_its_base(tmp_path: Path, tiny_model_dir: Path, suite_file: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from posttrain.evals.checkpoints import write_manifest
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tmp_path / "lora"
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), LoraConfig(r=4, target_modules="all-linear")
    )
    for step in (1, 2):
        folder = run / f"checkpoint-{step}"
        if step == 2:
            torch.manual_seed(0)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
        write_manifest(folder, step=step, resumable=False)
    write_run_json(run, "lora", finished=True)
    base = tmp_path / "scores"
    score([tiny_model_dir], suite_file, device="cpu", output=base)
    report = score([run], suite_file, device="cpu")
    assert report.failed == ()
    expected = figures(base / tiny_model_dir.name)["final", "lines"]
    assert figures(run)["checkpoint-1", "lines"][0][1] == pytest.approx(expected[0][1], rel=1e-5)  # B is 0 at the start
    assert figures(run)["checkpoint-2", "lines"][0][1] != pytest.approx(expected[0][1], rel=1e-3)


def test_a_plain_model_gets_a_run_folder_of_its_own(tiny_model_dir: Path, suite_file: Path, tmp_path: Path):
    report = score([tiny_model_dir], suite_file, device="cpu", output=tmp_path / "out")
    folder = tmp_path / "out" / tiny_model_dir.name
    assert len(ScoreStore(folder).load()) == len(report.done) == 3
    assert json.loads((folder / "run.json").read_text())["name"] == tiny_model_dir.name
    assert score([tiny_model_dir], suite_file, device="cpu", output=tmp_path / "out").skipped == 3
    assert not (tiny_model_dir / "scores.jsonl").exists()


def test_what_another_trainer_saved_are_plain_models(tiny_model_dir: Path, suite_file: Path, tmp_path: Path):
    theirs = shutil.copytree(tiny_model_dir, tmp_path / "theirs")
    last = shutil.copytree(tiny_model_dir, theirs / "checkpoint-5")
    board = tmp_path / "board"
    report = score([theirs, last], suite_file, device="cpu", output=board, watch=True)  # and a watch of it ends
    assert (len(report.done), report.unfinished, report.exit_code) == (6, (), 0)
    assert [run.name for run in find_runs([board])] == ["theirs", "theirs--checkpoint-5"]
    (theirs / "config.json").unlink()
    with pytest.raises(InputError, match="name one of its checkpoints"):
        score([theirs], suite_file, output=board)


def test_a_call_that_finds_no_checkpoint_says_so(make_run: MakeRun, suite_file: Path):
    run = make_run((1,), final=False)
    (run / "checkpoint-1" / "manifest.json").unlink()
    result = CliRunner().invoke(app, ["score", str(run), "--suite", str(suite_file)])
    assert result.exit_code == 2
    assert "checkpoint-1: its save has not finished" in result.stdout
    assert "no complete checkpoint to score; --watch" in result.stderr
    result = CliRunner().invoke(app, ["score", str(run), "--suite", str(suite_file), "--watch"])
    assert (result.exit_code, "--watch" in result.stderr) == (2, False)


def test_a_final_model_that_is_still_to_come_is_no_wrong_input(make_run: MakeRun, suite_file: Path):
    run = make_run((1,), final=False, finished=False)
    wanted = ["score", str(run), "--suite", str(suite_file), "--final-only"]
    result = CliRunner().invoke(app, wanted)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "no final model yet" in result.stdout
    write_run_json(run, "toy", finished=True)
    assert CliRunner().invoke(app, wanted).exit_code == 2


@pytest.mark.parametrize("path", ["./nowhere", "no/such/path/at/all", "org/no-such-model"])
def test_a_path_that_is_nothing_is_one_clear_error(path: str, suite_file: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"neither a run|no such folder"):
        score([path], suite_file, output=tmp_path)


def test_a_plain_model_without_an_output_folder_is_refused(tiny_model_dir: Path, suite_file: Path):
    with pytest.raises(InputError, match="say -o FOLDER: there each such model gets a run folder"):
        score([tiny_model_dir], suite_file)


def test_a_metric_that_the_task_does_not_have_is_named(make_run: MakeRun, suite_file: Path):
    suite_file.write_text(suite_file.read_text().replace("name: choices,", "name: choices, metric: f2,"))
    report = score([make_run((1,), final=False)], suite_file, device="cpu")
    assert [failure.task for failure in report.failed] == ["choices"]
    assert "no metric 'f2'" in report.failed[0].reason
    assert "acc_norm" in report.failed[0].reason


def test_all_wrong_tasks_of_a_suite_are_named_before_a_model_is_loaded(make_run: MakeRun, suite_file: Path):
    text = suite_file.read_text().replace("{test: choices.jsonl}", "{tset: choices.jsonl}")
    suite_file.write_text(text.replace("{test: prompts.jsonl}", "{text: prompts.jsonl}"))
    lines: list[str] = []
    with pytest.raises(SuiteError, match=r"(?s)'tset'.*'text'"):
        score([make_run((1,))], suite_file, device="cpu", progress=lines.append)
    assert lines == []
