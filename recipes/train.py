"""The life of a run, the same for every stage: claim, prepare, resume, train, save, score.

Runs under any launcher::

    posttrain train RECIPE [a.b=c]
    accelerate launch --config_file CONFIG -m posttrain.recipes.train RECIPE [a.b=c]
"""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import PosttrainError, first_line
from ..data_tools.files import explain_full_disk, locked, write_json
from ..evals import checkpoints
from ..evals.records import now
from . import launch, rundir
from .announce import header, kernels, next_steps, standing_checkpoint
from .decisions import Ready, decide, placed, trainer_config
from .errors import RecipeError, RunError
from .job import Job, open_job
from .load import Loaded, load

if TYPE_CHECKING:
    from transformers import Trainer

    from .model import Head


def train(loaded: Loaded, *, processes: int | None = None, force: bool = False) -> None:
    """Trains one recipe in this process, which may be one of several.

    Args:
        loaded: The recipe.
        processes: How many processes the user asked for; None to take what the launcher gives.
        force: Go on in a folder that belongs to a different recipe.

    Raises:
        PosttrainError: The input is wrong or the run failed.
    """
    run_dir = Path(loaded.recipe.output_dir)
    record = {} if force else rundir.read_record(run_dir)
    if record and rundir.change_since(record, rundir.origin_of(loaded)) is None and rundir.is_finished(run_dir):
        now: dict[str, Any] = {"data": rundir.contents_of(loaded)}
        if Path(loaded.recipe.model.chat_template or "").is_file():  # a built-in name is part of the recipe's hash
            now["template"] = _template(open_job(loaded))
        rundir.check_inputs(record, now, loaded)
        _say(f"{run_dir}: already trained; nothing to do")
        return
    _say("\n".join(header(loaded, int(os.environ.get("WORLD_SIZE", "1")))))
    _quiet_bars()
    args = trainer_config(loaded)
    state = _check_processes(processes)
    # A second run is kept out of the folder for as long as this one lives.
    with locked(run_dir / ".lock") if state.is_main_process else contextlib.nullcontext():
        with state.main_process_first():
            record = rundir.claim(loaded, processes=state.num_processes, force=force) if state.is_main_process else {}
            ready = decide(loaded, args)
        if state.is_main_process:
            _record_inputs(ready.job, record, ready.data, force)
        with explain_full_disk(run_dir):
            trainer = _trained_through(ready)
            _finish(ready.job, trainer, ready.head)
    _say(f"{run_dir}: trained for {trainer.state.global_step} steps; the final model is whole")
    _say("\n".join(next_steps(loaded)))


def _quiet_bars() -> None:
    """Leaves out the bars of reading and writing weights; those of downloads stay, on a terminal."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()  # the Hub's too
    if sys.stderr.isatty():
        enable_progress_bars()


def _say(text: str) -> None:
    """Prints a line from the main process."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(text, flush=True)


def _check_processes(expected: int | None) -> Any:
    """Returns the process state, having made sure that the processes that were started know of each other."""
    from accelerate import PartialState

    state = PartialState()
    for wanted, source in ((expected, "--processes"), (int(os.environ.get("WORLD_SIZE", "1")), "the launcher")):
        if wanted is not None and wanted != state.num_processes:
            raise RunError(
                f"{source} asked for {wanted} processes, but {state.num_processes} train together",
                hint="on CPUs use recipes/accelerate/cpu.yaml, which accelerate does not turn into one process",
            )
    return state


def _record_inputs(job: Job, record: dict[str, Any], data: dict[str, Any], force: bool) -> None:
    """Adds data and template to ``run.json``; a run that resumes must find them as they were."""
    from .. import chat_templates
    from .provenance import origins

    described = {
        split: prepared
        and {"fingerprint": prepared.fingerprint, "contents": [*prepared.contents], **prepared.report.to_dict()}
        for split, prepared in data.items()
    }
    if described.get("train"):
        described["train"] |= origins(job.loaded.recipe.data.train, job.loaded.path.parent)
    now = {"data": described, "template": _template(job)}
    marked = job.template and chat_templates.fingerprint(job.template, job.tokenizer)
    if (record.get("template") or {}).get("fingerprint") == marked:  # as older versions recorded one with marks
        record["template"] = now["template"]
    for split, prepared in data.items():
        for note in prepared.report.notes if prepared else ():
            _say(f"data.{split}: {note}")
    rundir.check_inputs(record, now, job.loaded, force=force)
    record |= {**now, "finished": None}
    write_json(job.run_dir / rundir.RUN_FILE, record)


def _template(job: Job) -> dict[str, Any] | None:
    """Describes the chat template of a run."""
    from .. import chat_templates

    return job.template and {
        "name": job.template.name,
        "fingerprint": chat_templates.fingerprint(job.template.saved, job.tokenizer),
    }


def build(ready: Ready) -> "Trainer":
    """Builds model and trainer; the seed is set first, because new weights and adapters are drawn from it.

    Raises:
        PosttrainError: The model cannot be loaded, or the trainer refuses it.
    """
    import torch
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from .adapters import adapter_config, settle
    from .callbacks import AveragedWeights, CheckpointKeeper, ProgressDisplay, ProgressKeeper, RankAllocation
    from .meter import Meter
    from .model import load_model, mup_base
    from .needs import peak_of, token_flops
    from .profiler import Profiler
    from .watchdog import Watchdog

    job, recipe = ready.job, ready.job.loaded.recipe
    train, held_out = ready.data["train"], ready.data["eval"]
    assert train is not None, "a recipe always has data.train"
    set_seed(ready.args.seed)
    progress = ProgressKeeper()
    keeper = CheckpointKeeper(job.loaded, progress, say=_say)
    display = ProgressDisplay(job.loaded.name)
    halves = torch.cuda.is_available() and (ready.args.bf16 or ready.args.fp16)  # what a device's peak is known of
    peak = peak_of(torch.cuda.get_device_name()) if halves else None
    meter = Meter(token_flops(job.loaded, ready.size), peak, say=_say)
    sampled = job.loaded.stage.family == "sampling"
    spikes = not sampled and recipe.stage != "kto"
    watchdog = Watchdog(job.run_dir, recipe.watchdog, sampled=sampled, spikes=spikes, say=_say)
    profiler = Profiler(_say) if recipe.profile else None
    with placed(job.loaded):
        model = load_model(recipe, job.tokenizer, ready.head)
        common = {
            "model": model,
            "args": ready.args,
            "train_dataset": train.dataset,
            "eval_dataset": held_out.dataset if held_out else None,
            "processing_class": job.tokenizer,
            "peft_config": adapter_config(job, model),
            "callbacks": [
                *([profiler] if profiler else []),
                watchdog,
                meter,
                display,
                progress,
                RankAllocation(),
                keeper,  # writes the manifest last
                AveragedWeights(),  # does nothing when a checkpoint is saved, only before
            ],
        }
        _say(kernels(job.loaded, model, ready.args))
        trainer = ready.stage.build(job, ready.args, model, ready.data, common)
        settle(trainer.model)
        if recipe.adapts and recipe.adapts.name_or_path:
            trainer.model.load_adapter(recipe.adapts.name_or_path, "default", is_trainable=True)  # type: ignore[union-attr]
        if job.option("optim") == "muon":
            from .optimizers import use_muon

            use_muon(trainer, say=_say)
        if recipe.model.mup_base:
            from .mup import use_mup

            use_mup(trainer, mup_base(recipe.model, job.tokenizer), say=_say)
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    if profiler:
        profiler.attach(trainer)
    meter.attach(trainer)
    watchdog.attach(trainer)
    keeper.trainer = progress.trainer = trainer
    trainer.create_model_card = lambda *_, **__: None  # TRL's names no parent; `rundir.write_card` writes ours
    return trainer


def _trained_through(ready: Ready) -> "Trainer":
    """Trains to the end, as often as the watchdog sends the run back; returns the trainer."""
    from accelerate import PartialState

    from .optimizers import trust_projectors
    from .watchdog import Rewind, record

    run_dir = ready.job.run_dir
    trust_projectors(str(ready.job.option("optim")))
    while True:
        resume = rundir.find_resume(run_dir, say=_say, best=ready.args.load_best_model_at_end)
        trainer = build(ready)
        try:
            _run(ready.job, trainer, resume)
        except Rewind as found:
            fault = found.fault
        else:
            return trainer
        del trainer
        _leave_memory()
        if PartialState().is_main_process:
            rundir.drop_checkpoints(run_dir, since=fault.step)
            record(run_dir, fault, "rewind")
        PartialState().wait_for_everyone()
        _say(f"watchdog: step {fault.step}: {fault.what}; going back, to skip its batch; {fault.hint}")


def _run(job: Job, trainer: "Trainer", resume: Path | None) -> None:
    """Trains to the end, from a checkpoint if there is a whole one."""
    from .callbacks import ProgressDisplay
    from .profiler import Profiler

    if trainer.is_world_process_zero():
        rundir.rewind_log(job.run_dir, resume)
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError) as error:
        first_best = "metric_for_best_model" in str(error)  # met at the first evaluation, whenever that is
        if (resume or trainer.state.global_step > 1) and not first_best:
            raise  # what has worked for a while fails for reasons that only its traceback tells
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"the first {'evaluation' if first_best else 'step'} failed: {first_line(error)}"
        what += f" ({type(error).__name__}, {place.filename}:{place.lineno})"
        hint = "posttrain check rehearses a step with the same settings"
        raise RunError(what, where=job.loaded.where(str(error)), hint=hint) from error
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressDisplay | Profiler):
                callback.close()
    if trainer.state.global_step == 0:
        hint = "trainer.max_steps and trainer.num_train_epochs say how long, data.train with what"
        raise RunError("the run took no step, so nothing was trained", where=str(job.run_dir), hint=hint)


def _finish(job: Job, trainer: "Trainer", head: "Head | None") -> None:
    """Saves the final model in plain Hugging Face format at the root of the run folder and closes the record."""
    from accelerate import PartialState

    spec = job.loaded.recipe.adapts
    adapter = spec is not None and not spec.kind.apart  # others are the run's final model as they are
    trained = job.run_dir / "adapter" if adapter else job.run_dir
    if trainer.is_world_process_zero():
        (job.run_dir / checkpoints.MANIFEST).unlink(missing_ok=True)  # an older one says nothing of what is saved now
    trainer.save_model(str(trained))
    if trainer.is_world_process_zero():
        step = rundir.saved_step(job.run_dir, trained, last=trainer.state.global_step)
        if adapter:
            from transformers import set_seed

            from .adapters import merge_adapter

            set_seed(trainer.args.seed)  # rows that the base lacks are drawn as they were for training
            rundir.write_card(trained)
            checkpoints.write_manifest(trained, step=step, resumable=False)  # which knows its base
            merged = merge_adapter(job, trained, head)
            merged.save_pretrained(job.run_dir)
        job.tokenizer.save_pretrained(job.run_dir)
        rundir.write_card(job.run_dir)
        checkpoints.write_manifest(job.run_dir, step=step, resumable=False)
        if adapter:
            _check_merge(job, trainer)
        record = rundir.read_record(job.run_dir)
        trained = _trained(trainer, record)
        write_json(job.run_dir / rundir.RUN_FILE, {**record, "trained": trained, "finished": now()})
    PartialState().wait_for_everyone()


def _trained(trainer: "Trainer", record: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Says how much the run has learnt from each source; None for stages that draw it anew or write it themselves.

    It is counted in tokens that carried loss, or in rows; ``epochs`` says how often the source was gone through.
    """
    sources: Any = getattr(trainer, "sources", None)
    unit, there = {"tokens": ("loss_tokens",) * 2, "rows": ("rows", "documents")}.get(
        sources and sources.of, (None,) * 2
    )
    if unit is None:
        return None
    found = []
    for source, count in zip(record["data"]["train"]["sources"], sources.counts(), strict=True):
        passes = count / source[there] if source[there] else 0.0
        found.append({"name": source["name"], unit: count, "epochs": round(passes * source["epochs"], 4)})
    return found


def _check_merge(job: Job, trainer: "Trainer") -> None:
    """Compares what was merged with the adapter and with the trainer's own model; all of them are saved by now.

    Raises:
        RunError: They are not one model. The run counts as unfinished, so that the same command merges once more.
    """
    from ..evals.models import LoadedModel
    from ..evals.parity import check_merge
    from .parity import parity_lines

    # Without the wrapper that rounds passes of mixed precision to 16 bits: what is compared is the weights' own say.
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # type: ignore[arg-type]
    whole = trainer.accelerator.num_processes == 1 and hasattr(model, "peft_config")
    live = LoadedModel(model, job.tokenizer, None) if whole else None
    try:
        found = check_merge(job.run_dir, live)
    except (PosttrainError, RuntimeError, MemoryError) as error:  # too little memory for a second model, most likely
        _say(f"the merged model was not compared with the adapter: {first_line(error)}")
        return
    if found.passed:
        largest = "" if found.largest is None else f", largest difference of a log-probability {found.largest:.2g} nats"
        _say(f"{job.run_dir}: the merged model is the adapter on its base ({found.tolerance} weights{largest})")
        return
    print(*parity_lines(found), sep="\n", file=sys.stderr)
    hint = f"the adapter and the checkpoints are whole: mend the cause and run again, or take {job.run_dir / 'adapter'}"
    raise RunError("the merged model is not the adapter on its base", where=str(job.run_dir), hint=hint)


def score_after(loaded: Loaded) -> int:
    """Scores what the recipe asks for, in a process of its own, and returns that process's exit code."""
    score = loaded.recipe.score
    if score is None:
        return 0
    command = launch.score_command(
        [loaded.recipe.output_dir], score.suite, loaded.references, final_only=score.every != "checkpoint"
    )
    return launch.run(command, launch.alone())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of ``python -m posttrain.recipes.train``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="posttrain.recipes.train", description="Train one recipe.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    parser.add_argument("--processes", type=int, help="refuse to run unless this many processes train together")
    parser.add_argument("--force", action="store_true", help="go on in a folder of a different recipe")
    parser.add_argument("--no-score", action="store_true", help="leave the recipe's score section to later")
    parser.add_argument("--step", action="append", default=[], help="NAME=FOLDER: what @NAME stands for in the recipe")
    options = parser.parse_intermixed_args(argv)  # overrides may stand behind flags
    launch.quiet_libraries()
    loaded = None
    try:
        with explain_full_disk(Path()):
            loaded = load(options.recipe, options.overrides, parse_steps(options.step))
            train(loaded, processes=options.processes, force=options.force)
        _leave_group()
        if options.no_score or int(os.environ.get("RANK", "0")) != 0:
            return 0
        return score_after(loaded)
    except PosttrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", "0")) == 0:
            standing = standing_checkpoint(Path(loaded.recipe.output_dir)) if loaded else None
            what = (
                f"{standing} stands, and the same command goes on from there" if standing else "nothing was saved yet"
            )
            print(f"interrupted; {what}", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # at once: workers that read data or score, and a library's threads, would be waited for


def parse_steps(pairs: Sequence[str]) -> dict[str, Path]:
    """Reads the folders of a pipeline's steps from ``NAME=FOLDER`` strings.

    Raises:
        RecipeError: One of them is not of that form.
    """
    steps = {}
    for pair in pairs:
        name, separator, folder = pair.partition("=")
        if not (name and separator and folder):
            raise RecipeError(f"--step {pair} is not of the form NAME=FOLDER")
        steps[name] = Path(folder)
    return steps


def _leave_group() -> None:
    """Ends the process group, so that no worker waits while the main process scores, and frees the GPU."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _leave_memory()  # the scorer is a process of its own and needs the room


def _leave_memory() -> None:
    """Frees what nothing refers to any more, on the GPU too."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
