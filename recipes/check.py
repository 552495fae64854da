"""``posttrain check``: everything that can be known before training and scoring, in one pass."""

import contextlib
import difflib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import PosttrainError
from ..data_tools.specfile import load_document
from . import estimate, needs
from .decisions import Ready, check_engine, decide, placed, trainer_config
from .errors import RecipeError
from .load import Loaded, load
from .monitor import described
from .rewards import name_of
from .schema import AdapterSpec, RewardSpec
from .stage_table import STAGES

if TYPE_CHECKING:
    from ..data_tools.prepare import Prepared
    from ..evals.judges import JudgingSpec
    from ..evals.spec import SuiteSpec
    from .job import Job
    from .model import Head
    from .pipeline import PlannedStep


def check_all(
    paths: Sequence[Path],
    overrides: Sequence[str],
    references: Mapping[str, Path],
    *,
    read_data: bool,
    data_dir: Path | None = None,
    assumed: needs.Assumptions | None = None,
) -> int:
    """Checks recipes, pipelines, suites and judges, and prints what was found.

    Args:
        paths: Their files; a judge's folder, and the names of suites and judges that come with posttrain, too.
        overrides: Of recipes and pipelines.
        references: What ``@name`` stands for.
        read_data: Whether data, template and loss mask are read, and the tasks of suites built.
        data_dir: A folder of benchmarks that suites read in place of their own.
        assumed: What memory and compute are estimated for; by default one GPU of any kind.

    Returns:
        The exit code: 2 if any of them is wrong, 1 if that could not be found out.
    """
    wrong = 0
    for path in paths:
        try:
            what, lines = _check(
                path,
                overrides,
                references,
                read_data=read_data,
                data_dir=data_dir,
                assumed=assumed or needs.Assumptions(),
            )
        except PosttrainError as error:
            wrong = max(wrong, error.exit_code)
            for line in str(error).splitlines():
                print(line if str(path) in line else f"{path}: {line}", file=sys.stderr)
            continue
        print(f"{path}: ok ({what})")
        for line in lines:
            print(f"  {line}")
    return wrong


def _check(
    path: Path,
    overrides: Sequence[str],
    references: Mapping[str, Path],
    *,
    read_data: bool,
    data_dir: Path | None,
    assumed: needs.Assumptions,
) -> tuple[str, list[str]]:
    """Returns what a file is, and what there is to say of it."""
    from ..evals.judges import FILE
    from ..evals.suite_files import load_suite
    from .pipeline import load_pipeline, plan, plan_parity, plan_score
    from .study import check_study, plan_one_seed

    kind = _kind(path)
    if kind in ("judge", "suite") and overrides:
        raise RecipeError(f"overrides are for recipes: {' '.join(overrides)}", where=str(path))
    if kind == "judge":
        return _judge(path.parent if path.name == FILE else path)
    if kind == "suite":
        suite = load_suite(path, references, data_dir=data_dir)
        return f"suite {suite.name}", _suite_lines(suite, read_data=read_data)
    if kind == "study":
        lines = check_study(path, overrides)
        return "study", [*lines, *_step_lines(plan_one_seed(path, overrides).values(), assumed)]
    if kind == "pipeline":
        pipeline, document = load_pipeline(path, overrides)
        plans = plan(document, pipeline)
        suites = [(name, _suite_of(one.loaded)) for name, one in plans.items() if one.loaded]
        last = plan_score(document, pipeline, plans)
        plan_parity(document, pipeline, plans)
        suites += [("all steps", (last.suite, last.references))] if last else []
        lines = _step_lines(plans.values(), assumed)
        lines += [line for name, suite in suites if suite for line in _score_lines(name, *suite, read_data=read_data)]
        return f"pipeline of {', '.join(plans)}", lines
    loaded = load(path, overrides, references)
    check_engine(loaded, needs.machine_of(assumed).engine)
    lines = _with_data(loaded, assumed) if read_data else _by_shapes(loaded, assumed)
    if suite := _suite_of(loaded):
        lines += _score_lines("score", *suite, read_data=read_data)
    return f"{loaded.recipe.stage}, recipe {loaded.hash}", lines


def _kind(path: Path) -> str:
    """Tells a judge, a suite, a study, a pipeline and a recipe apart, by keys that may be misspelt."""
    from ..evals.judges import FILE, judge_names
    from ..evals.suite_files import suite_names

    if path.name == FILE or (path / FILE).is_file() or (not path.exists() and str(path) in judge_names()):
        return "judge"
    if not path.exists() and str(path) in suite_names():
        return "suite"
    keys = set(load_document(path).value)
    no_suite = keys & {"stage", "model", "steps", "trainer"}
    if keys & _SUITE_KEYS and not no_suite:
        return "suite"
    kinds = {"arms": "study", "steps": "pipeline", "stage": "recipe"} | ({} if no_suite else {"tasks": "suite"})
    close = [key for key in kinds if difflib.get_close_matches(key, keys, 1, 0.7)]
    return next((kinds[key] for key in [*(key for key in kinds if key in keys), *close]), "recipe")


def _step_lines(plans: "Iterable[PlannedStep]", assumed: needs.Assumptions) -> list[str]:
    """Says what each step that trains will need, from shapes alone: earlier steps have yet to write their models."""
    lines, made = [], {}
    for step in plans:
        if tokens := getattr(step.tool, "vocab_size", None):
            made[str(step.folder.absolute())] = tokens
        if step.loaded:
            said = _by_shapes(step.loaded, assumed, made)
            lines += [f"{step.name}: {line}" for line in said if not line.startswith(" ")]  # without the details
    return lines


def _by_shapes(loaded: Loaded, assumed: needs.Assumptions, made: dict[str, Any] | None = None) -> list[str]:
    """Says what a run will need, and what of the recipe only its model's layers can tell.

    Raises:
        RecipeError: ``model.mup_base`` is not of a narrower model.
    """
    recipe = loaded.recipe
    if recipe.model.mup_base:
        from .model import check_mup_base
        from .mup import OPTIMIZERS, check_optimizer

        check_mup_base(recipe.model)
        check_optimizer(str(recipe.trainer.get("optim") or OPTIMIZERS[-1]))
    options = recipe.adapts.options if recipe.adapts else {}
    named = [key for key in ("target_modules", "modules_to_save") if options.get(key) not in (None, [], "all-linear")]
    unseen = [f"{recipe.section}.{key}: whether the model has such modules was not looked for" for key in named]
    return [*needs.lines(loaded, assumed, made=made), *unseen]


def _suite_of(loaded: Loaded) -> tuple[str, Mapping[str, Path]] | None:
    """Returns the suite that a recipe's ``score`` names, and what ``@name`` stands for in it."""
    score = loaded.recipe.score
    return (score.suite, loaded.references) if score else None


def _score_lines(name: str, suite: str, references: Mapping[str, Path], *, read_data: bool) -> list[str]:
    """Checks a suite that is scored once steps have run; its tasks too, unless it reads what they have yet to write."""
    from ..evals.suite_files import check_suite, load_suite

    if check_suite(suite, references):
        return [f"{name}: suite {suite}, whose files steps have yet to write"]
    return [f"{name}: {line}" for line in _suite_lines(load_suite(suite, references), read_data=read_data)]


_SUITE_KEYS = {
    *("tasks", "robustness", "perplexity", "pairs", "classification", "functions", "prompts", "judges"),
    *("groups", "data_dir"),
}


def _suite_lines(suite: "SuiteSpec", *, read_data: bool) -> list[str]:
    """Says what each task of a suite reads and needs, and builds those whose rows are here.

    Raises:
        SuiteError: With everything that is wrong.
    """
    from ..evals.definitions import HarnessTask
    from ..evals.errors import SuiteError
    from ..evals.score import define_all

    lines = [f"left out, not in {suite.data_dir}: {', '.join(suite.left_out)}"] if suite.left_out else []
    problems = []
    tasks = define_all(suite)
    if remote := sum(task.is_remote for task in tasks):
        what = f"{remote} tasks are" if remote > 1 else "1 task are"
        unmet = ", and `offline: false` fetches what the Hub's cache lacks" if suite.offline else ""
        lines.append(f"the rows of {what} not here and were not looked at; --data-dir names a folder of them{unmet}")
    for task in tasks:
        said = task.needs()
        lacking = [need for need in said if need.endswith("not installed")]
        if lacking:
            problems.append(f"{task.spec.title}: needs the {', '.join(lacking)}")
        if read_data and not task.reads_checkpoint and not task.is_remote:
            try:
                task.check(Path())
            except PosttrainError as error:
                problems.append(str(error))
                continue
            known = task.canaries() if isinstance(task, HarnessTask) else None
            if known and known.fault:
                said.append(known.fault)
            if known and known.majority is not None:
                always = repr(known.answer) if isinstance(known.answer, str) else f"option {known.answer}"
                said.append(f"always {always} scores {known.majority:.3f} on {known.metric}")
        lines.append(f"{task.spec.title}: {'; '.join(said)}" if said else task.spec.title)
    for entry in suite.judges:
        try:
            lines.append(f"{entry.title}: {'; '.join(_judge_needs(entry))}")
        except PosttrainError as error:
            problems.append(f"{entry.title}: {error}")
    if problems:
        raise SuiteError("\n".join(problems))
    return lines


def _judge_needs(entry: "JudgingSpec") -> list[str]:
    """Says whom an entry's judge, or each member of its jury, asks about which answers, and what it needs for that.

    Raises:
        InputError: One of them cannot work here.
    """
    from ..evals.errors import SuiteError
    from ..evals.judging.backends import BACKENDS

    found = []
    for judge in entry.members:
        settings = judge.settings
        BACKENDS[settings.backend](judge, entry.title, []).check()
        whom = settings.rule or settings.model + (f" at {settings.address}" if settings.backend == "endpoint" else "")
        found.append(f"{settings.kind} judge {judge.name} asks {whom} about {entry.prompts}")
        if settings.backend == "endpoint" and not find_spec("openai"):
            raise SuiteError("a judge behind a server needs the openai package", hint="pip install 'posttrain[judge]'")
        if settings.api_key_env and not os.environ.get(settings.api_key_env):
            found.append(f"its key is to be in {settings.api_key_env}, which is not set")
    return found


def _judge(folder: Path) -> tuple[str, list[str]]:
    """Reads a judge's folder and renders its prompt."""
    from ..evals.judges import JudgingSpec, load_judges
    from ..evals.judging.prompt import JudgePrompt

    judges = load_judges(JudgingSpec(judge=str(folder), prompts="any"))
    for judge in judges:
        if judge.ordered:
            for by in ("text", "logprobs"):
                JudgePrompt(judge, by)
    kinds = {judge.settings.kind for judge in judges}
    backends = ", ".join(dict.fromkeys(judge.settings.backend for judge in judges))
    return f"{' and '.join(kinds)} judge", [
        f"asks: {backends}",
        *(f"prompt: {judge.where}" for judge in judges if judge.prompt),
    ]


def _with_data(loaded: Loaded, assumed: needs.Assumptions) -> list[str]:
    """Reads data and template as a run would, and adds up what the run would do."""
    ready = decide(loaded, trainer_config(loaded), needs.machine_of(assumed).processes)
    lines = _template_lines(ready)
    for split, prepared in ready.data.items():
        if prepared is not None:
            lines += _data_lines(split, prepared)
    if objective := loaded.recipe.objective:
        share = f"{objective.mlm_probability:.0%} of them, special tokens aside"
        lines.append(f"objective: {objective.name}: {share}, are hidden and carry loss, others in each epoch")
    assert ready.data["train"] is not None, "a recipe always has data.train"
    lines += _run_lines(ready.job, ready.size, ready.data["train"], assumed)
    rehearse(ready)
    return lines


def _template_lines(ready: Ready) -> list[str]:
    """Says which template is used, and of what its checks warn where its loss mask is used."""
    from .. import chat_templates

    job = ready.job
    if job.template is None:
        return []
    name = f"template: {job.template.name} ({chat_templates.fingerprint(job.template.saved, job.tokenizer)})"
    if ready.proof is None:
        return [name]
    failed = [f"{f.severity}: template: {f.check}: {f.message}" for f in ready.proof.failed]
    return [f"{name}, {ready.proof.summary}", *failed]


# What a report says after the number of tokens, by the kind of row, where loss is not all there is to say.
_TOKEN_WORDS = {
    "preference": "tokens (prompts counted with each answer), {:,} in answers",
    "unpaired": "tokens, {:,} in answers",
    "prompt": "tokens in prompts",
    "classification": "tokens",
}


def _data_lines(split: str, prepared: "Prepared") -> list[str]:
    """Reports rows, tokens, shares, and every dropped row by its reason."""
    report = prepared.report
    fill = f", rows {report.fill:.1%} full" if report.fill is not None else ""
    words = _TOKEN_WORDS.get(report.sources[0].kind, "tokens, {:,} carry loss").format(report.loss_tokens)
    lines = [f"data.{split}: {report.rows:,} rows, {report.tokens:,} {words}{fill}"]
    for source in report.sources:
        share = f", {source.share:.1%} of tokens (asked {source.target:.1%})" if len(report.sources) > 1 else ""
        lines.append(f"  {source.name}: {source.kept:,} of {source.rows:,} rows, {source.epochs:.2f} epochs{share}")
        for reason, count in source.dropped.items():
            lines.append(f"    dropped {count:,}: {reason} (as in {source.examples[reason][0]})")
        lines += [f"    {note}" for note in source.notes]
    return [*lines, *(f"  {note}" for note in report.order_notes)]


def _run_lines(job: "Job", size: estimate.ModelSize, train: "Prepared", assumed: needs.Assumptions) -> list[str]:
    """Reports steps, and what the whole run needs."""
    recipe, report, processes = job.loaded.recipe, train.report, needs.machine_of(assumed).processes
    batch = job.option("per_device_train_batch_size") * job.option("gradient_accumulation_steps") * processes
    sampled = report.sources[0].kind == "prompt"
    steps = estimate.run_steps(job, train, processes)
    epochs = steps / estimate.steps_per_epoch(job, train, processes)
    where = "one process" if processes == 1 else f"{processes} processes"
    # an answer that has yet to be sampled is counted as long as it may become
    answer = (job.option("max_completion_length") or 0) if sampled else 0
    tokens = int(steps * batch * (report.tokens / max(1, report.rows) + answer))
    return [
        *_new_token_lines(job, size),
        *_warmup_lines(job, steps),
        f"{where}: {steps:,} steps of {batch} rows, {epochs:.2f} epochs, "
        f"{'at most ' if sampled else ''}{needs.count(tokens)} tokens",
        *_schedule_lines(job, epochs, where),
        *needs.lines(job.loaded, assumed, needs.RunSize(tokens, size)),
        *(described(recipe.score, steps) if recipe.score else []),
    ]


def _schedule_lines(job: "Job", epochs: float, where: str) -> list[str]:
    """Warns of a schedule that the run does not come to the end of."""
    if job.loaded.recipe.data.schedule is None or epochs >= 1:
        return []
    return [f"warning: data.schedule: the run ends after {epochs:.1%} of it (on {where})"]


def _warmup_lines(job: "Job", steps: int) -> list[str]:
    """Warns of a learning rate that is still rising when the run ends."""
    warmup = job.option("warmup_steps")
    if not warmup or warmup < steps:
        return []
    return [f"warning: trainer.warmup_steps: {warmup:g} of {steps:,} steps, so the learning rate is never reached"]


def _new_token_lines(job: "Job", size: estimate.ModelSize) -> list[str]:
    """Says which tokens the model has yet to learn, and how many parameters that is under adapters."""
    if not job.new_tokens:
        return []
    names = " ".join(job.tokenizer.convert_ids_to_tokens(list(job.new_tokens[:_NAMED])))
    more = f" and {len(job.new_tokens) - _NAMED:,} more" if len(job.new_tokens) > _NAMED else ""
    why = "which the template added" if job.added else "by which its tokenizer was extended"
    rows = f", {size.new_tokens:,} parameters in float32" if size.new_tokens else ""
    return [f"new tokens: {names}{more}, {why} and the model has to learn{rows}"]


# --- The rehearsal: one step of the run's own trainer, with its own settings, by a model of some thousand weights ---
#
# What a trainer refuses, it mostly refuses when it is built, at the first step or at the first evaluation, in words of
# its own library. No list of such refusals stays complete, so `check` lets the trainer itself decide.

_NAMED = 8  # new tokens that are called by their names
# what fits the recipe's own model alone
_OF_ITS_MODEL = {
    **dict.fromkeys(("attn_implementation", "chat_template", "rope_parameters", "mup_base")),
    "use_kernels": False,
}
_ROW_TOKENS = 16
_STEPS_OF_ROWS = 4
_DROPPED = (
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "push_to_hub", "report_to", "full_determinism"),
    *("router_aux_loss_coef", "log_completions_hub_repo", "load_best_model_at_end", "save_steps", "logging_steps"),
    *("log_level", "log_completions", "dataset_num_proc", "save_total_limit", "save_strategy"),
)


def rehearse(ready: Ready) -> None:
    """Trains one step and evaluates once, with a stand-in for every model and the first rows of the data.

    Raises:
        RecipeError: The trainer refuses the settings or stumbles over them, or takes no step.
    """
    import torch

    from ..evals.models import quiet_reports

    loaded = ready.job.loaded
    if loaded.recipe.trainer.get("use_vllm"):  # of which a model this small says nothing
        return
    with (
        quiet_reports(),  # of the stand-ins' weights
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),  # what trainers print is for the run itself
        contextlib.redirect_stderr(io.StringIO()),
        placed(loaded),
    ):
        trainer = _stand_in(ready, Path(folder))
        trainer.add_callback(_one_step())
        try:
            trainer.train()
        except torch.OutOfMemoryError:  # another run holds this machine's accelerator
            return
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if trainer.state.global_step < 1:
            raise RecipeError(
                "trainer: the training rows make no step",
                hint="give more rows, smaller batches, or no dataloader_drop_last",
            )


def _one_step() -> Any:
    """Returns what ends a run after its first step, so that its schedule is still that of all steps."""
    from transformers import TrainerCallback

    class OneStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    return OneStep()


def _stand_in(ready: Ready, folder: Path) -> Any:
    """Builds the recipe's trainer around tiny models."""
    from .train import build

    loaded = _recipe(ready, folder)
    job = replace(ready.job, loaded=loaded)
    args = trainer_config(loaded)
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * _STEPS_OF_ROWS
    data = {split: prepared and _first(prepared, rows) for split, prepared in ready.data.items()}
    head = ready.head and replace(ready.head, pooling=None)
    return build(replace(ready, job=job, args=args, data=data, head=head))


def _recipe(ready: Ready, folder: Path) -> Loaded:
    """Returns the recipe with tiny models and functions in the place of its own, and one step in that of its many."""
    loaded = ready.job.loaded
    recipe = loaded.recipe
    policy = save_tiny(ready.job.tokenizer, folder / "policy", None, masked=recipe.objective is not None)
    named = {"name_or_path": policy, "config": None, "tokenizer": None, "revision": None, "layers": None}
    changed: dict[str, Any] = {
        "model": recipe.model.model_copy(update={**named, **_OF_ITS_MODEL}),
        "quantization": None,
        "output_dir": str(folder / "run"),
        "score": None,
        "rewards": [_constant(spec) if spec.model else spec for spec in recipe.rewards],
        "gold": _constant(recipe.gold) if recipe.gold and recipe.gold.model else recipe.gold,
        "trainer": _settings(recipe.trainer, recipe.stage, evaluates=recipe.data.eval is not None),
    }
    if recipe.adapts:
        changed |= {"lora": None, "adapter": _small_adapter(recipe.adapts)}
    if recipe.teacher:
        teacher = save_tiny(ready.job.tokenizer, folder / "teacher", ready.head)
        update = {"name_or_path": teacher, "revision": None, "top_k": None, "attn_implementation": None}
        changed["teacher"] = recipe.teacher.model_copy(update=update)
    if recipe.critic:
        changed["critic"] = recipe.critic.model_copy(update={"name_or_path": None})
    if recipe.classify:
        changed["classify"] = recipe.classify.model_copy(update={"pooling": None})
    return replace(loaded, recipe=recipe.model_copy(update=changed))


# What a kind of adapter needs to fit the stand-in, whose layers are 16 wide.
_LAYERS = {"target_modules": ["q_proj", "v_proj"]}
_SMALL: dict[str, dict[str, Any]] = {
    "adaption_prompt": {"adapter_layers": 2, "adapter_len": 2},
    "c3a": {**_LAYERS, "block_size": 8},
    "fourierft": {**_LAYERS, "n_frequency": 16},
    "ia3": {**_LAYERS, "feedforward_modules": []},
    "ln_tuning": {"target_modules": ["input_layernorm"]},
    "lora": {"target_modules": "all-linear", "r": 4},
    "miss": {**_LAYERS, "r": 4},
    "psoft": {**_LAYERS, "r": 4},
    "road": {**_LAYERS, "group_size": 8},
    "shira": {**_LAYERS, "r": 2},
    "trainable_tokens": {"token_indices": [0]},
    "vblora": {**_LAYERS, "vector_length": 8, "num_vectors": 8},
    "waveft": {**_LAYERS, "n_frequency": 16},
}
_SIZELESS = ("use_dora", "use_rslora", "lora_dropout", "prefix_projection", "encoder_reparameterization_type")


def _small_adapter(spec: AdapterSpec) -> AdapterSpec:
    """Returns an adapter of the same kind that fits the stand-in; fields of the recipe that have no size are kept."""
    small = _SMALL.get(spec.type, {"num_virtual_tokens": 2} if spec.kind.virtual else _LAYERS)
    kept = {name: value for name, value in spec.options.items() if name in _SIZELESS}
    return AdapterSpec.model_validate({"type": spec.type, **small, **kept})


def _settings(trainer: dict[str, Any], stage: str, *, evaluates: bool) -> dict[str, Any]:
    """Returns a recipe's trainer fields for one step: everything but its length and where it reports to."""
    given = {key: value for key, value in trainer.items() if key not in _DROPPED}
    saves = "best" if trainer.get("save_strategy") == "best" else "no"  # the best asks for a metric
    once: dict[str, Any] = {"save_strategy": saves, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    if evaluates and given.get("eval_strategy", "no") != "no":
        once |= {"eval_strategy": "steps", "eval_steps": 1, "eval_delay": 0}
    small = {"max_completion_length": 4, "dataloader_num_workers": 1}
    if "prompt" not in STAGES[stage].accepts:
        small["gradient_accumulation_steps"] = 2
    once |= {key: min(given[key], most) for key, most in small.items() if isinstance(given.get(key), int)}
    if "prompt" in STAGES[stage].accepts:
        once.setdefault("max_completion_length", 4)
    return {**given, **once}


def _first(prepared: "Prepared", rows: int) -> "Prepared":
    """Returns the first rows with the last tokens of each, where answers and their labels stand."""
    some = prepared.dataset.select(range(min(rows, len(prepared.dataset))))
    if "token_type_ids" in some.column_names:
        some = some.remove_columns("token_type_ids")
    return replace(prepared, dataset=some.map(_cut, load_from_cache_file=False, keep_in_memory=True))


def _cut(row: dict[str, Any]) -> dict[str, Any]:
    cut = {key: value[-_ROW_TOKENS:] for key, value in row.items() if key.endswith(("_ids", "labels")) and value}
    lengths = {name: [len(cut["input_ids"])] for name in ("seq_lengths", "source_lengths") if name in row}
    return cut | lengths | ({"sources": row["sources"][-1:]} if "sources" in row else {})


def save_tiny(tokenizer: Any, folder: Path, head: "Head | None", *, masked: bool = False) -> str:
    """Saves a model of two narrow layers that reads the recipe's tokens."""
    from transformers import BertConfig, LlamaConfig

    from ..evals.models import auto_class
    from .model import head_options

    narrow = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if masked:
        auto_class("masked").from_config(BertConfig(**narrow)).save_pretrained(folder)
    else:
        config = LlamaConfig(**narrow, num_key_value_heads=2, **head_options(head and replace(head, pooling=None)))
        auto_class("classifier" if head else "causal").from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _constant(spec: RewardSpec) -> RewardSpec:
    """Returns a term of the same name and weight as a reward model's, that finds all answers alike."""
    return spec.model_copy(update={"model": None, "function": f"{__name__}:alike", "name": name_of(spec)})


def alike(completions: list[Any]) -> list[float]:
    """Gives every completion the same reward."""
    return [0.0] * len(completions)
