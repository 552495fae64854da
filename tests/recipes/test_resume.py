"""A run that is killed ends as if it had not been; a damaged checkpoint is left, by name and with the reason."""

import inspect
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from posttrain import chat_templates
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools.files import hash_file
from posttrain.evals import checkpoints
from posttrain.recipes import rundir
from posttrain.recipes.errors import RunFolderError
from posttrain.recipes.job import open_job
from posttrain.recipes.load import load
from posttrain.recipes.train import train

from . import warm
from .conftest import ABSENT, EVERY_RECIPE, command, log, losses

WEIGHTS = "model.safetensors"


def run(recipe: Path, **options: bool) -> Path:
    loaded = load(recipe)
    train(loaded, **options)
    return Path(loaded.recipe.output_dir)


def undo_end(run_dir: Path) -> None:
    """Puts a finished run back to the moment before its final model was saved."""
    (run_dir / WEIGHTS).unlink()
    (run_dir / checkpoints.MANIFEST).unlink()
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "finished": None}))


def resume_before_last_save(recipe: Path, run_dir: Path) -> None:
    """Takes a finished run back to the checkpoint before its last, trains on, and holds it to the same bits and log."""
    weights, before = (run_dir / WEIGHTS).read_bytes(), log(run_dir)
    undo_end(run_dir)
    shutil.rmtree(max(run_dir.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2])))
    train(load(recipe))
    assert (run_dir / WEIGHTS).read_bytes() == weights
    assert log(run_dir) == before


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "none, at the end": (lambda _: None, None),
    "truncated weights": (lambda c: truncate(c / WEIGHTS), f"{WEIGHTS} has"),
    "missing weights": (lambda c: (c / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "one byte changed": (lambda c: flip(c / WEIGHTS), f"{WEIGHTS} has changed"),
    "missing optimizer": (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "missing scheduler": (lambda c: (c / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "missing trainer state": (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "truncated trainer state": (lambda c: truncate(c / "trainer_state.json"), "trainer_state.json has"),
    "missing random state": (lambda c: (c / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "empty folder": (empty, "the folder is empty"),
    "no manifest": (lambda c: (c / checkpoints.MANIFEST).unlink(), "manifest.json is missing or unreadable"),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# Every kind on one stage, since what finds damage is the same for all; on each other stage one of them, and none.
KINDS = itertools.cycle(kind for kind, (_, reason) in DAMAGE.items() if reason)
DAMAGED = [
    pytest.param("sft", list(DAMAGE), id="sft"),
    *(
        pytest.param(stage, ["none, at the end", next(KINDS)], id=stage, marks=pytest.mark.slow)
        for stage in EVERY_RECIPE
        if stage != "sft"
    ),
]


@pytest.mark.parametrize(("stage", "kinds"), DAMAGED)
def test_a_damaged_checkpoint_is_named_and_left_and_the_weights_come_out_the_same(
    make_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, kinds: list[str]
) -> None:
    options = {"logging_steps": 3, "lr_scheduler_type": "constant"}  # a save between two lines; rates that stay
    run_dir = run(make_recipe(stage, **options))
    expected, whole_log = hash_file(run_dir / WEIGHTS), log(run_dir)
    assert [line["step"] for line in whole_log] == [3, 6, 9, 12, 12]
    whole = shutil.copytree(run_dir, tmp_path / "whole")
    for damage in kinds:
        act, reason = DAMAGE[damage]
        shutil.rmtree(run_dir)
        shutil.copytree(whole, run_dir)
        undo_end(run_dir)
        act(run_dir / "checkpoint-12")
        capsys.readouterr()
        run(make_recipe(stage, **options))
        printed = capsys.readouterr().out
        named = reason is None or f"leaving damaged checkpoint {run_dir / 'checkpoint-12'}: {reason}" in printed
        assert named, damage
        assert f"resuming from {run_dir / ('checkpoint-8' if reason else 'checkpoint-12')}" in printed, damage
        assert hash_file(run_dir / WEIGHTS) == expected, damage
        assert log(run_dir) == whole_log, damage
        assert checkpoints.verify(run_dir / "checkpoint-12") == [], damage


class Planted:
    """A pickle that leaves a file behind if anybody runs it."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.slow
def test_a_state_that_cannot_be_read_is_named_and_left_and_no_pickle_in_it_is_run(
    make_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, trace = run(make_recipe()), tmp_path / "ran"
    expected, whole_log = hash_file(run_dir / WEIGHTS), log(run_dir)
    pickles = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "progress_0_of_1.pt")
    texts = {"empty": "", "torn": '{"global_step": 12', "a list": "[]", "another's": '{"global_step": 8}'}
    plants = {f"{name} planted": (name, lambda path: torch.save(Planted(trace), path)) for name in pickles}
    plants |= {f"{name} empty": (name, lambda path: path.write_bytes(b"")) for name in (*pickles, WEIGHTS)}
    plants |= {w: ("trainer_state.json", lambda path, text=text: path.write_text(text)) for w, text in texts.items()}
    for what, (name, plant) in plants.items():
        undo_end(run_dir)
        (run_dir / "log.jsonl").write_bytes(b'{"step": 1, "lo\n\0\0\0')  # as a power cut may leave it
        newest = run_dir / "checkpoint-12"
        plant(newest / name)
        torch.save(Planted(trace), newest / "training_args.bin")
        checkpoints.write_manifest(newest, step=12, resumable=True)  # forged: each file is as it says
        capsys.readouterr()
        run(make_recipe())
        assert f"leaving damaged checkpoint {newest}: {name}" in capsys.readouterr().out, what
        assert hash_file(run_dir / WEIGHTS) == expected, what
        assert log(run_dir) == whole_log, what
        assert not trace.exists(), what


def test_what_deepspeed_would_load_is_inspected_too(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler").LossScaler(1.0)
    run_dir, trace = run(make_recipe()), tmp_path / "ran"
    newest = run_dir / "checkpoint-12"
    states = newest / "global_step12" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    states.parent.mkdir()

    def resumes_from(state: Any, latest: str = "global_step12", damage: Callable[[Path], object] = str) -> str:
        torch.save(state, states)
        (newest / "latest").write_text(latest)
        damage(states)
        checkpoints.write_manifest(newest, step=12, resumable=True)  # forged: each file is as it says
        found = rundir.find_resume(run_dir)
        return found.name if found else "none"

    whole = {"loss_scaler": scaler, "state": {0: torch.ones(3)}}
    assert resumes_from(whole) == "checkpoint-12"
    assert resumes_from({**whole, "more": Planted(trace)}) == "checkpoint-8"
    for damage in (truncate, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(pickle.dumps(1))):
        assert resumes_from(whole, damage=damage) == "checkpoint-8"
    for latest in ("", "global_step4", "../elsewhere"):
        assert resumes_from(whole, latest=latest) == "checkpoint-8"
    assert resumes_from(whole) == "checkpoint-12"
    states.unlink()
    assert rundir.find_resume(run_dir) == run_dir / "checkpoint-8"
    assert not trace.exists()


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"step": 12, "resumable": true, "files": {"a": {}}, "weights": ""}']
)
def test_a_manifest_that_is_none_is_that_of_an_unfinished_save(tmp_path: Path, manifest: str) -> None:
    (tmp_path / checkpoints.MANIFEST).write_text(manifest)
    assert checkpoints.verify(tmp_path) == ["manifest.json is missing or unreadable, so the save did not finish"]


@pytest.mark.parametrize("lora", [False, True])
def test_the_final_model_is_labelled_by_the_weights_it_has(make_recipe: Callable[..., Path], lora: bool) -> None:
    rows = {"path": "messages.jsonl", "format": "messages"}
    sections = {"data": {"train": rows, "eval": rows}, **({"lora": {"r": 2, "alpha": 4}} if lora else {})}
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "metric_for_best_model": "loss"}
    best |= {"greater_is_better": True, "lr_scheduler_type": "constant"}  # the highest loss is the first one
    recipe = make_recipe(sections=sections, **best)
    run_dir = run(recipe)
    expected = hash_file(run_dir / WEIGHTS)
    for _ in range(2):
        final, first = checkpoints.read_manifest(run_dir), checkpoints.read_manifest(run_dir / "checkpoint-4")
        assert final is not None
        assert first is not None
        assert final.step == 4
        assert checkpoints.weights_hash(run_dir / "adapter" if lora else run_dir) == first.weights
        assert hash_file(run_dir / WEIGHTS) == expected
        undo_end(run_dir)
        run(recipe)


def test_a_run_whose_best_checkpoint_is_damaged_makes_it_again(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"path": "messages.jsonl", "format": "messages"}
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "metric_for_best_model": "loss"}
    recipe = make_recipe(sections={"data": {"train": rows, "eval": rows}}, greater_is_better=True, **best)
    run_dir = run(recipe)
    expected = hash_file(run_dir / WEIGHTS)
    undo_end(run_dir)
    truncate(run_dir / "checkpoint-4" / WEIGHTS)
    run(recipe)
    assert "checkpoint-12: the best checkpoint before it, checkpoint-4, is damaged" in capsys.readouterr().out
    assert hash_file(run_dir / WEIGHTS) == expected


def test_a_finished_run_whose_final_weights_are_damaged_saves_them_again(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(lr_scheduler_type="constant")
    run_dir = run(recipe)
    expected, whole_log = hash_file(run_dir / WEIGHTS), log(run_dir)
    truncate(run_dir / WEIGHTS)
    run(recipe)
    assert hash_file(run_dir / WEIGHTS) == expected
    assert log(run_dir) == whole_log


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_what_is_evaluated_where_an_epoch_ends_is_in_a_resumed_log_too(
    make_recipe: Callable[..., Path], strategy: str
) -> None:
    rows = {"path": "messages.jsonl", "format": "messages"}
    options = {"max_steps": ABSENT, "num_train_epochs": 2, "per_device_train_batch_size": 16, "save_steps": 5}
    options |= {"save_strategy": strategy, "eval_strategy": "epoch", "eval_on_start": True, "logging_strategy": "epoch"}
    recipe = make_recipe(sections={"data": {"train": rows, "eval": rows}}, lr_scheduler_type="constant", **options)
    run_dir = run(recipe)
    expected, whole_log = hash_file(run_dir / WEIGHTS), log(run_dir)
    assert [line["step"] for line in whole_log] == [0, 5, 5, 10, 10, 10]
    for removed in ("checkpoint-10", "none"):
        undo_end(run_dir)
        shutil.rmtree(run_dir / removed, ignore_errors=True)
        run(recipe)
        assert hash_file(run_dir / WEIGHTS) == expected
        assert log(run_dir) == whole_log


def test_a_run_that_was_stopped_early_does_not_train_on(
    make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import DefaultFlowCallback

    plain = DefaultFlowCallback.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        plain(self, args, state, control, **kwargs)
        control.should_training_stop = control.should_training_stop or state.global_step == 8
        return control

    monkeypatch.setattr(DefaultFlowCallback, "on_step_end", stop)
    run_dir = run(make_recipe())
    expected = hash_file(run_dir / WEIGHTS)
    monkeypatch.undo()
    undo_end(run_dir)
    run(make_recipe())
    assert hash_file(run_dir / WEIGHTS) == expected
    assert checkpoints.list_checkpoints(run_dir)[-1].name == "checkpoint-8"


def test_a_folder_in_which_nothing_was_trained_takes_the_mended_recipe(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(PosttrainError):
        run(make_recipe(sections={"lora": {"target_modules": ["nothing_of_this_name"]}}))
    run_dir = run(make_recipe())
    assert "lora" not in {k for k, v in json.loads((run_dir / "run.json").read_text())["recipe"].items() if v}


def test_a_folder_in_which_nothing_was_trained_takes_mended_data(
    make_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    recipe = make_recipe()
    monkeypatch.setattr(Trainer, "training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(recipe)
    monkeypatch.undo()
    rows = (tmp_path / "messages.jsonl").read_text()
    (tmp_path / "messages.jsonl").write_text(rows.replace("It is", "That is"))
    assert rundir.is_finished(run(recipe))


def test_a_run_that_took_no_step_is_never_finished(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(PosttrainError):
        run(make_recipe(max_steps=-1, num_train_epochs=0))
    assert not rundir.is_finished(tmp_path / "run")
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_run_folders_hold_our_card_and_no_other(make_recipe: Callable[..., Path]) -> None:
    run_dir = run(make_recipe(sections={"lora": {"r": 2, "alpha": 4}}))
    cards = {path.parent.name: path.read_text() for path in run_dir.rglob("README.md")}
    assert set(cards) == {"run", "adapter", "checkpoint-4", "checkpoint-8", "checkpoint-12"}
    assert all("Trained with posttrain by a run of stage sft" in card for card in cards.values())
    assert {name for name, card in cards.items() if "library_name: peft" in card} == cards.keys() - {"run"}
    assert "# run, step 8" in cards["checkpoint-8"]


def test_the_private_names_that_a_resume_sets_still_exist() -> None:
    from transformers import Trainer
    from trl.trainer.sft_trainer import SFTTrainer

    loop = inspect.getsource(Trainer._inner_training_loop) + inspect.getsource(Trainer._finalize_training)
    for name in ("_globalstep_last_logged", "_initial_global_step", "_initial_num_input_tokens_seen", "_run_epoch"):
        assert f"self.{name}" in loop
    for name in ("_total_loss_scalar", "_tr_loss"):
        assert f"self.{name}" in loop
    assert "self._total_train_tokens" in inspect.getsource(SFTTrainer)
    assert "self._metrics" in inspect.getsource(SFTTrainer)


def test_without_any_whole_checkpoint_it_says_so_and_starts_again(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = run(make_recipe())
    expected = hash_file(run_dir / WEIGHTS)
    undo_end(run_dir)
    for folder in checkpoints.list_checkpoints(run_dir):
        truncate(folder / "optimizer.pt")
    run(make_recipe())
    assert "no whole checkpoint is left: starting from the first step" in capsys.readouterr().out
    assert hash_file(run_dir / WEIGHTS) == expected


def scheduled(folder: Path) -> dict[str, Any]:
    """Returns a data section of two sources whose shares change along the run."""
    for name, word in (("first", "What"), ("second", "It")):
        rows = [{"text": f"{word} is {number}. " * (1 + number % 4)} for number in range(60)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": str(folder / f"{name}.jsonl"), "name": name} for name in ("first", "second")]
    phases = [
        {"share": 1, "weights": {"first": 3, "second": 1}},
        {"share": 1, "weights": {"first": 1}, "to": {"second": 1}},
    ]
    return {"train": sources, "schedule": phases, "tokens": 14_000}


def test_a_run_with_a_schedule_goes_on_where_it_was(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = make_recipe("pretrain", sections={"data": scheduled(tmp_path)})
    run_dir = run(path)
    expected, logged = hash_file(run_dir / WEIGHTS), log(run_dir)
    undo_end(run_dir)
    shutil.rmtree(run_dir / "checkpoint-12")
    run(path)
    assert hash_file(run_dir / WEIGHTS) == expected
    assert log(run_dir) == logged
    phases = json.loads((run_dir / "run.json").read_text())["data"]["train"]["phases"]
    assert [phase["target"] for phase in phases] == [[0.75, 0.25], [0.5, 0.5]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [
        *("sft", "reward", "dpo", "kto", "orpo", "ppo", "grpo", "rloo", "classify", "distill", "distill_on_policy"),
        "pretrain",  # with shares that change along the run
    ],
)
def test_kill_minus_nine_at_a_random_step_changes_nothing(
    make_recipe: Callable[..., Path], tmp_path: Path, stage: str
) -> None:
    trainer = {"max_steps": 20, "save_steps": 5}
    data = {"data": scheduled(tmp_path)} if stage == "pretrain" else {}
    whole = run(make_recipe(stage, "whole", data, **trainer))
    recipe = make_recipe(stage, "killed", data, **trainer)
    killed = Path(load(recipe).recipe.output_dir)
    at = random.SystemRandom().randint(6, 13)
    process = warm.start(command("train", recipe))
    log = killed / "log.jsonl"
    while process.is_alive() and not (log.exists() and log.read_bytes().count(b"\n") >= at):
        time.sleep(0.005)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not psutil.wait_procs(started, timeout=60)[1], "what it has started ends with it"
    steps = [checkpoints.step_of(folder) or 0 for folder in checkpoints.list_checkpoints(killed)]
    assert max(steps) < trainer["max_steps"], "nothing of the killed run goes on"
    assert json.loads((killed / "run.json").read_text())["finished"] is None
    again = warm.run("train", recipe)
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stdout, f"killed at step {at}"
    assert hash_file(killed / WEIGHTS) == hash_file(whole / WEIGHTS), f"killed at step {at}"
    assert losses(killed) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_a_run_at_once_and_says_what_stands(
    make_recipe: Callable[..., Path], tmp_path: Path, processes: int
) -> None:
    recipe, run_dir = make_recipe(max_steps=100_000, save_steps=50, save_total_limit=2), tmp_path / "run"
    environments: list[Any] = [os.environ] if processes == 1 else warm.environments_of_two()
    started = [
        warm.start(command("train", recipe), tmp_path / str(number), environment)
        for number, environment in enumerate(environments)
    ]
    while started[0].is_alive() and checkpoints.read_manifest(run_dir / "checkpoint-50") is None:
        time.sleep(0.01)
    for process in started:  # as a terminal does
        os.kill(process.pid, signal.SIGINT)
    lines = (run_dir / "log.jsonl").read_bytes().count(b"\n")
    for process in started:
        process.join()
    assert len(log(run_dir)) <= lines + 1, "the step that it was in is the last"
    assert [process.exitcode for process in started] == [130] * processes
    standing = rundir.find_resume(run_dir)
    assert standing is not None
    said = (tmp_path / "0.err").read_text()
    assert f"interrupted; {standing} stands, and the same command goes on from there" in said
    assert "Traceback" not in said


def test_a_finished_run_is_not_trained_again_nor_taken_for_one_on_other_rows(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = run(make_recipe())
    before = (run_dir / WEIGHTS).stat().st_mtime_ns
    run(make_recipe())
    assert "nothing to do" in capsys.readouterr().out
    assert (run_dir / WEIGHTS).stat().st_mtime_ns == before
    recipe = make_recipe()
    rows = tmp_path / "messages.jsonl"
    rows.write_text(rows.read_text().replace("2", "3"))
    with pytest.raises(RunFolderError, match=r"changed since the run began: \S*messages.jsonl \(data.train\);"):
        run(recipe)


def test_a_finished_run_is_not_taken_for_one_with_another_template(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path
) -> None:
    template = tmp_path / "own.jinja"
    written = (Path(chat_templates.__file__).parent / "chatml.jinja").read_text()
    template.write_text(written)
    recipe = make_recipe(sections={"model": {"name_or_path": str(tiny_model_dir), "chat_template": str(template)}})
    run(recipe)
    run(recipe)
    template.write_text(written.replace("<|im_end|>", "<|im_end|> "))
    with pytest.raises(RunFolderError, match="changed since the run began: the chat template;"):
        run(recipe)


def test_a_run_whose_record_is_of_a_recognised_template_with_its_marks_goes_on(
    make_recipe: Callable[..., Path], instruct_model_dir: Path
) -> None:
    recipe = make_recipe(sections={"model": {"name_or_path": str(instruct_model_dir)}}, max_steps=1)
    run_dir = run(recipe)
    job, record = open_job(load(recipe)), json.loads((run_dir / "run.json").read_text())
    assert job.template is not None
    marked = chat_templates.fingerprint(job.template, job.tokenizer)
    older = record | {"template": record["template"] | {"fingerprint": marked}}
    (run_dir / "run.json").write_text(json.dumps(older))
    undo_end(run_dir)
    run(recipe)
    assert json.loads((run_dir / "run.json").read_text())["template"] == record["template"] != older["template"]


def test_a_finished_run_is_not_taken_for_one_with_another_tokenizer(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path
) -> None:
    tokenizer = shutil.copytree(tiny_model_dir, tmp_path / "tokenizer")
    model = {"name_or_path": str(tiny_model_dir), "tokenizer": str(tokenizer), "chat_template": "chatml"}
    recipe = make_recipe(sections={"model": model})
    run(recipe)
    run(recipe)
    settings = tokenizer / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 77}))
    with pytest.raises(RunFolderError, match="changed since the run began: the tokenizer"):
        run(recipe)


def test_a_finished_run_is_not_taken_for_one_with_another_reward(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    reward = tmp_path / "own.py"
    reward.write_text("def own(completions, **_): return [float(len(text)) for text in completions]")
    recipe = make_recipe("grpo", sections={"rewards": [{"function": f"{reward}:own"}]}, max_steps=1)
    run(recipe)
    run(recipe)
    reward.write_text(reward.read_text().replace("len(text)", "-len(text)"))
    with pytest.raises(RunFolderError, match=r"changed since the run began: own\.py"):
        run(recipe)


def test_a_folder_of_a_different_recipe_is_refused_unless_told(make_recipe: Callable[..., Path]) -> None:
    run_dir = run(make_recipe())
    changed = make_recipe(learning_rate=0.01)
    with pytest.raises(RunFolderError, match=r"trainer.learning_rate: 0.003 -> 0.01"):
        run(changed)
    run(changed, force=True)
    assert json.loads((run_dir / "run.json").read_text())["recipe"]["trainer"]["learning_rate"] == 0.01


def test_a_folder_with_strange_files_is_refused(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=r"thesis\.tex"):
        run(make_recipe())


def test_resuming_on_changed_data_is_refused(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe()
    undo_end(run(recipe))
    rows = (tmp_path / "messages.jsonl").read_text()
    (tmp_path / "messages.jsonl").write_text(rows.replace("It is", "That is"))
    with pytest.raises(RunFolderError, match=r"began: the rows of data.train, \S*messages.jsonl \(data.train\);"):
        run(recipe)


def test_resuming_with_another_number_of_processes_is_refused_unless_told(make_recipe: Callable[..., Path]) -> None:
    run_dir = run(recipe := make_recipe(max_steps=4))
    undo_end(run_dir)
    loaded = load(recipe)
    rows = loaded.option("per_device_train_batch_size") * loaded.option("gradient_accumulation_steps")
    with pytest.raises(
        RunFolderError, match=rf"--processes 1, {rows} rows a step; --processes 2 would make it {2 * rows};"
    ):
        rundir.claim(loaded, processes=2)
    assert rundir.claim(loaded, processes=1)["processes"] == 1
    assert rundir.claim(loaded, processes=2, force=True)["processes"] == 2
    assert rundir.claim(loaded, processes=2)["processes"] == 2


def test_old_checkpoints_go_only_once_the_new_one_is_whole(make_recipe: Callable[..., Path]) -> None:
    run_dir = run(make_recipe(save_total_limit=2))
    kept = checkpoints.list_checkpoints(run_dir)
    assert [folder.name for folder in kept] == ["checkpoint-8", "checkpoint-12"]
    assert all(checkpoints.verify(folder) == [] for folder in kept)


def test_a_damaged_checkpoint_ahead_takes_no_whole_one_s_place(
    make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    recipe, step = make_recipe(save_total_limit=1), Trainer.training_step
    run_dir = run(recipe)
    undo_end(run_dir)
    truncate(run_dir / "checkpoint-12" / "optimizer.pt")

    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return step(self, *args, **kwargs) if self.state.global_step < 6 else 1 / 0

    monkeypatch.setattr(Trainer, "training_step", stopped)
    with pytest.raises(ZeroDivisionError):
        run(recipe)
    assert rundir.find_resume(run_dir) == run_dir / "checkpoint-4"


def test_a_run_that_keeps_weights_only_says_that_it_begins_again(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(save_only_model=True, lr_scheduler_type="constant")
    run_dir = run(recipe)
    expected, whole_log = hash_file(run_dir / WEIGHTS), log(run_dir)
    undo_end(run_dir)
    run(recipe)
    assert "checkpoint-12 holds weights only (trainer.save_only_model): starting from" in capsys.readouterr().out
    assert (hash_file(run_dir / WEIGHTS), log(run_dir)) == (expected, whole_log)


def test_the_best_critic_is_saved_with_the_best_policy(make_recipe: Callable[..., Path]) -> None:
    rows = {"path": "prompt.jsonl", "format": "prompt"}
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "greater_is_better": False}
    best |= {"metric_for_best_model": "eval_kl_coef", "per_device_eval_batch_size": 40}  # constant: the first is best
    run_dir = run(make_recipe("ppo", sections={"data": {"train": rows, "eval": rows}}, **best))
    critic = "critic/model.safetensors"
    hashes = [hash_file(run_dir / folder / critic) for folder in (".", "checkpoint-4", "checkpoint-12")]
    assert hashes[0] == hashes[1] != hashes[2]
