"""What is decided before a run, in one order, by the same functions for ``check`` and ``train``.

Whatever is refused is refused here, before the run folder is written to and before any weights are loaded.
"""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import PosttrainError, TemplateError, did_you_mean, first_line
from ..data_tools.errors import SpecError
from ..data_tools.plain_values import is_number
from . import estimate
from .errors import RecipeError
from .job import Job, open_job, prove_template
from .load import Loaded
from .model import check_objective, head_modules, load_model, whole_weights
from .mup import check_optimizer
from .rows import prepare_rows
from .schema import ClassifySpec, ModelSpec, Recipe
from .stage_table import STAGES

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..data_tools.prepare import Prepared
    from ..data_tools.proof import Proof
    from .model import Head

# The package that a value needs, where it is not the value's own name: report_to, and the words in optimizers' names.
_REPORTERS = {"azure_ml": "azureml", "neptune": "neptune", "flyte": "flytekitplugins", "kubeflow": "transformers"}
_OPTIMIZERS = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
    "anyprecision": "torchdistx",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu": "torch_npu",
    "_bnb": "bitsandbytes",
    "8bit": "bitsandbytes",
    "lion": "bitsandbytes",
    "paged": "bitsandbytes",
    "ademamix": "bitsandbytes",
}
_ON_GPU = ("galore_adamw_8bit", "lomo")  # words in the names of optimizers whose kernels are CUDA's
_FORGETFUL = {
    "layerwise": "steps inside the backward pass, and its state is in no checkpoint",
    "grokadamw": "finds its state by the weights' objects, and none is found for those of a resumed run",
}
_BY_MATRIX = {"muon": "orthogonalises", "galore": "projects", "apollo": "projects"}
# What transformers hands on to an optimizer of projected gradients for some of its weights or none.
_UNPROJECTED = {"weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
_SWITCHES = {"use_liger_kernel": "liger_kernel", "use_vllm": "vllm"}
_PIP = {
    "liger_kernel": "liger-kernel",
    "optimi": "torch-optimi",
    "lomo_optim": "lomo-optim",
    "azureml": "azureml-mlflow",
}


@dataclass(frozen=True)
class Ready:
    """A recipe that may be trained.

    Attributes:
        job: The recipe with its tokenizer and template.
        stage: The stage's module.
        args: The trainer's configuration.
        proof: What is proved of the chat template's loss mask, without an error; None where none is read from it.
        data: The prepared splits.
        head: The classification head, if the stage trains one.
        size: The model's parameters.
    """

    job: Job
    stage: Any
    args: "TrainingArguments"
    proof: "Proof | None"
    data: "dict[str, Prepared | None]"
    head: "Head | None"
    size: estimate.ModelSize


def decide(loaded: Loaded, args: "TrainingArguments", processes: int | None = None) -> Ready:
    """Decides whether a recipe can be trained, everything on this machine but the weights taken into account.

    Args:
        loaded: The recipe.
        args: What ``trainer_config`` has made of it.
        processes: How many are to train; by default those that this is one of.

    Raises:
        PosttrainError: It cannot; says where in the recipe.
    """
    # One process after the other decides: under ZeRO-3 none can wait for the others' shards.
    with placed(loaded), whole_weights():
        stage = loaded.stage.module()
        if loaded.recipe.score:  # files that it names may have yet to be written by a pipeline's steps
            from ..evals.suite_files import check_suite, load_suite
            from .monitor import check_columns

            if loaded.references:
                check_suite(loaded.recipe.score.suite, loaded.references)
            else:
                check_columns(loaded, load_suite(loaded.recipe.score.suite))
        if loaded.recipe.watchdog == "rewind" and args.fp16:
            hint = "say watchdog: stop, or train in bf16"
            raise RecipeError("watchdog: rewind skips updates, which fp16 cannot", hint=hint)
        if loaded.stage.family in ("text", "masked"):
            check_objective(loaded.recipe)
        job = open_job(loaded)
        proof = verify_template(job)
        data = {split: prepare_rows(job, split) for split in ("train", "eval")}
        if data["eval"] and args.eval_strategy == "no" and int(os.environ.get("RANK", "0")) == 0:
            what = "data.eval is not evaluated on: say trainer.eval_strategy: epoch, or steps and trainer.eval_steps"
            print(f"warning: {what}", file=sys.stderr)
        check_schedule(job, args, data["train"], processes or args.world_size)
        check_allocation(job, data["train"], processes or args.world_size)
        head = stage.head(job, data) if loaded.stage.headed else None
        model = load_model(loaded.recipe, job.tokenizer, head, empty=True)
        check_rows(data, model)
        check_documents(job, model, model)
        check_models(job, args, data, model, head)
        if loaded.recipe.trainer.get("router_aux_loss_coef") and not hasattr(
            model.config.get_text_config(), "output_router_logits"
        ):
            raise RecipeError("trainer.router_aux_loss_coef weighs experts, and the model has none", hint="drop it")
        if loaded.recipe.adapts:
            check_adapter(loaded, model)
        return Ready(job, stage, args, proof, data, head, estimate.model_size(job, model, head))


def check_schedule(job: Job, args: Any, train: "Prepared | None", processes: int) -> None:
    """Refuses a run that goes through a schedule of its data more than once, or ends within that of its rate.

    Raises:
        RecipeError: It does.
    """
    if train is None:
        return
    if args.lr_scheduler_type == "warmup_stable_decay":
        steps = estimate.run_steps(job, train, processes)
        warmup, decay = args.get_warmup_steps(steps), args.lr_scheduler_kwargs["num_decay_steps"]
        if warmup + decay > steps:
            what = f"trainer.lr_scheduler_kwargs: {warmup:,} steps of warmup and {decay:,} of decay are more than the"
            raise RecipeError(f"{what} run's {steps:,}", hint="lower num_decay_steps, or train longer")
    if job.loaded.recipe.data.schedule is None:
        return
    steps = estimate.steps_per_epoch(job, train, processes)
    if args.max_steps > steps or (args.max_steps <= 0 and args.num_train_epochs != 1):
        epochs = args.max_steps / steps if args.max_steps > 0 else args.num_train_epochs
        raise RecipeError(
            f"data.schedule is one pass over {train.report.rows:,} rows, and the run takes {epochs:.3g}",
            hint="say trainer.num_train_epochs: 1, and how long the run is by data.tokens, which repeats sources",
        )


def check_allocation(job: Job, train: "Prepared | None", processes: int) -> None:
    """Refuses a run that AdaLoRA's schedule of ranks (its warmup, pruning and end) does not fit into.

    Raises:
        RecipeError: It does not.
    """
    spec = job.loaded.recipe.adapts
    if spec is None or spec.type != "adalora" or train is None:
        return
    steps = estimate.run_steps(job, train, processes)
    first, last = (spec.options.get(name, 0) for name in ("tinit", "tfinal"))
    if first >= steps - last:
        what = f"adapter.tinit is {first} and adapter.tfinal {last}, and the run has {steps:,} steps: none is left for"
        raise RecipeError(f"{what} sharing out ranks between them", hint="lower them, or train longer")


def check_engine(loaded: Loaded, engine: str | None) -> None:
    """Refuses what needs whole weights and gradients where an engine cuts them into shards.

    Args:
        loaded: The recipe.
        engine: ``DeepSpeed``, ``FSDP`` or None, which processes run under or are to be launched under.

    Raises:
        RecipeError: It asks for such a thing.
    """
    if engine is None:
        return
    recipe, optim = loaded.recipe, str(loaded.option("optim"))
    does = next((does for word, does in _BY_MATRIX.items() if word in optim), None)
    refusals = (
        (
            does is not None,
            f"trainer.optim: {optim} {does} whole matrices, and {engine} cuts them into shards",
            "launch with --accelerate ddp, or take another optimizer",
        ),
        (
            "schedule_free" in optim and engine == "DeepSpeed",
            "trainer.optim: a schedule-free optimizer swaps weights in to save them, and DeepSpeed saves copies",
            "launch with --accelerate ddp, or take another optimizer",
        ),
        (
            recipe.adapts is not None and recipe.adapts.type == "adalora",
            f"adapter.type: adalora weighs and masks whole matrices between steps, and {engine} has shards and copies",
            "launch with --accelerate ddp, or take lora",
        ),
        (
            recipe.model.mup_base is not None,
            f"model.mup_base: weights are scaled by their whole shapes, and {engine} may cut them or regroup them",
            "launch with --accelerate ddp, or drop it",
        ),
        (
            recipe.watchdog == "rewind" and engine == "DeepSpeed",
            "watchdog: rewind skips updates, which DeepSpeed cannot",
            "say watchdog: stop",
        ),
    )
    for refused, what, hint in refusals:
        if refused:
            raise RecipeError(what, where=loaded.where(what), hint=hint)


def check_packed_rows(loaded: Loaded) -> None:
    """Refuses packed rows where a launcher has each row cut over several processes.

    Ring attention and Ulysses know of one causal text a row: its documents would see each other without a word.

    Raises:
        RecipeError: The rows are packed, and accelerate's ``parallelism_config`` cuts rows.
    """
    cut = [kind for kind in ("CP", "SP") if int(os.environ.get(f"PARALLELISM_CONFIG_{kind}_SIZE") or 1) > 1]
    if cut and loaded.option("packing"):
        what = "trainer.packing: documents of a row would see each other where context or sequence parallelism cuts it"
        raise RecipeError(what, where=loaded.where(what), hint="say trainer.packing: false")


def check_documents(job: Job, model: Any, reader: Any) -> None:
    """Refuses packed rows for a model whose own code lets their documents see each other; warns if that is not known.

    Args:
        job: The recipe, read.
        model: What is trained, which decides how batches are laid out.
        reader: What reads them: that, or its teacher.

    Raises:
        RecipeError: A document's hidden states depend on the one before it in its row.
    """
    from .apart import keeps_documents_apart, reads_flat_rows

    if not job.option("packing"):
        return
    apart, who = keeps_documents_apart(reader, flat=reads_flat_rows(model)), "model" if reader is model else "teacher"
    if apart is None and int(os.environ.get("RANK", "0")) == 0:
        what = f"whether the {who} keeps documents of a row apart cannot be seen on this machine"
        print(f"warning: trainer.packing: {what}", file=sys.stderr)
    if apart is False:
        what = f"documents of a row would see each other in the {who}, of type {reader.config.model_type}"
        raise RecipeError(f"trainer.packing: {what}", hint="say trainer.packing: false")


def check_rows(data: "dict[str, Prepared | None]", model: Any) -> None:
    """Refuses rows that are longer than a model with an embedding for each place; warns where places have none.

    Only rows of one text each are looked at: a pair's or a drawn answer's length is up to the trainer.

    Raises:
        InputError: A row has no place for its last token.
    """
    import pyarrow.compute

    from ..evals.models import check_length

    pc: Any = pyarrow.compute  # whose functions are made when it is imported
    hint = "say trainer.max_length: {most}; data.too_long says what becomes of longer rows"
    for split, prepared in data.items():
        if prepared is None or "input_ids" not in prepared.dataset.column_names:
            continue
        columns, packed = prepared.dataset.data.table, "seq_lengths" in prepared.dataset.column_names
        lengths = pc.list_flatten(columns["seq_lengths"]) if packed else pc.list_value_length(columns["input_ids"])
        longest = pc.max(lengths).as_py()
        told = check_length(model, longest, f"data.{split}: the longest row has {longest:,} tokens", hint)
        if told and int(os.environ.get("RANK", "0")) == 0:
            print(f"warning: {told}, or scale them by model.rope_parameters", file=sys.stderr)


def check_models(job: Job, args: Any, data: "dict[str, Prepared | None]", model: Any, head: "Head | None") -> None:
    """Loads what a run loads beside its model, all but the weights' numbers.

    Raises:
        PosttrainError: One of them cannot be used for what the recipe wants of it.
    """
    recipe = job.loaded.recipe
    if recipe.rewards or recipe.gold:
        from . import rewards

        assert data["train"] is not None, "a recipe always has data.train"
        rewards.check_terms(recipe, job.tokenizer, data["train"].dataset[0])
    if recipe.stage == "ppo":
        from .ppo.critic import load_critic

        load_critic(recipe, job.tokenizer, model, empty=True)
    if recipe.teacher and head:
        from .classification import teacher as classifiers

        problem = (recipe.classify or ClassifySpec()).problem
        classifiers.load_teacher(recipe.teacher, problem, head.labels, job.tokenizer, empty=True)
    elif recipe.teacher:
        from .distillation.teacher import check_hidden, load_teacher

        teacher = load_teacher(recipe.teacher, job.tokenizer, empty=True)
        check_documents(job, model, teacher)
        if getattr(args, "hidden_cosine", 0):
            check_hidden(model, teacher)


@contextlib.contextmanager
def placed(loaded: Loaded) -> Iterator[None]:
    """Says of an error where in the recipe it was made; what a library refuses becomes an error of the recipe."""
    from huggingface_hub.errors import StrictDataclassError  # of a model's configuration; no ValueError

    try:
        yield
    except PosttrainError as error:
        if error.where in (None, str(loaded.path)) and not isinstance(error, SpecError):
            error.where = loaded.where(f"{error.what} {error.hint or ''}")
        raise
    except StrictDataclassError as error:
        what = first_line(error.__cause__ or error)
        raise RecipeError(what, where=loaded.where(f"model.config {what}")) from error
    except (ValueError, TypeError, KeyError, ImportError, NotImplementedError, AttributeError, OSError) as error:
        what = first_line(error) if isinstance(error, ValueError | ImportError) else f"{type(error).__name__}: {error}"
        raise RecipeError(what, where=loaded.where(what)) from error


def check_packages(loaded: Loaded) -> None:
    """Refuses values whose package is not installed, and uploads that cannot leave this machine.

    Raises:
        RecipeError: With the first of them.
    """
    import torch

    trainer = loaded.recipe.trainer
    reporters = trainer.get("report_to") or []
    needed: dict[str, str] = {
        f"report_to: {name}": _REPORTERS.get(str(name), str(name))
        for name in _as_list(reporters)
        if name not in ("none", "all")
    }
    optim = str(trainer.get("optim") or "")
    needed |= {f"optim: {optim}": package for word, package in reversed(_OPTIMIZERS.items()) if word in optim}
    needed |= {name: package for name, package in _SWITCHES.items() if trainer.get(name)}
    for field, package in needed.items():
        if importlib.util.find_spec(package) is None and not (package == "tensorboard" and _has("tensorboardX")):
            name = _PIP.get(package, package.replace("_", "-"))
            raise RecipeError(
                f"trainer.{field} needs the package {name}, which is not installed", hint=f"pip install {name}"
            )
    if any(word in optim for word in _ON_GPU) and not torch.cuda.is_available():
        raise RecipeError(f"trainer.optim: {optim} runs on CUDA alone", hint="take another optimizer on this machine")
    for word, why in _FORGETFUL.items():
        if word in optim:
            hint = "a run that was killed could not go on: take another optimizer"
            raise RecipeError(f"trainer.optim: {optim} {why}", hint=hint)
    if trainer.get("activation_offloading") and not torch.accelerator.is_available():
        what = "trainer.activation_offloading moves activations from an accelerator, and there is none here"
        raise RecipeError(what, hint="drop it on this machine; trainer.gradient_checkpointing saves memory anywhere")
    if "kubeflow" in _as_list(reporters) and "KUBEFLOW_TRAINER_SERVER_URL" not in os.environ:
        why = "needs KUBEFLOW_TRAINER_SERVER_URL, which Kubeflow sets in its own pods"
        raise RecipeError(f"trainer.report_to: kubeflow {why}", hint="drop it elsewhere")
    _check_kernels(loaded.recipe.model)
    if loaded.recipe.quantization and not _has("bitsandbytes"):
        raise RecipeError("quantization needs bitsandbytes", hint="pip install 'posttrain[quantization]'")
    uploads = [name for name in ("push_to_hub", "log_completions_hub_repo") if trainer.get(name)]
    if uploads:
        from huggingface_hub import get_token
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if HF_HUB_OFFLINE or not (trainer.get("hub_token") or get_token()):
            why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "there is no token; log in with `hf auth login`"
            raise RecipeError(f"trainer.{uploads[0]} uploads to the Hub, but {why}", hint="drop it")


def _check_kernels(spec: ModelSpec) -> None:
    """Refuses layers or attention of the Hub's kernels where the package that fetches them is not installed."""
    from transformers.utils import import_utils

    attention = spec.attn_implementation or ""
    field = "use_kernels" if spec.use_kernels else f"attn_implementation: {attention}" if "/" in attention else None
    if field and not import_utils.is_kernels_available():
        wanted = f"kernels>={import_utils.KERNELS_MIN_VERSION},<{import_utils.KERNELS_MAX_VERSION}"
        what = f"model.{field} needs the package {wanted}, which is not installed"
        raise RecipeError(what, hint=f"pip install '{wanted}'")


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def trainer_config(loaded: Loaded) -> "TrainingArguments":
    """Builds the stage's configuration, for this machine.

    Raises:
        RecipeError: A package is missing, or the configuration class refuses the values or their combination.
    """
    stage = loaded.stage.module()
    with placed(loaded):
        check_packages(loaded)
        try:
            args = stage.config(loaded.recipe.stage, _machine_defaults(loaded))
        except (ValueError, TypeError, KeyError, ImportError, AttributeError, OSError) as error:
            raise RecipeError(f"trainer: {first_line(error)}") from error
        if args.torch_compile:
            check_compiler(args)
        check_unread(args)
        if loaded.option("optim") == "muon":
            from .optimizers import muon_options

            muon_options(args.optim_args)
        elif args.optim_args:
            from .optimizers import check_options

            check_options(args)
        fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
        check_engine(loaded, "DeepSpeed" if args.deepspeed_plugin else "FSDP" if fsdp else None)
        check_packed_rows(loaded)
        if loaded.recipe.model.mup_base:
            optim = str(loaded.recipe.trainer.get("optim") or args.optim.value)  # muon is not the args' own word
            check_optimizer(optim)
    args._n_gpu = min(args.n_gpu, 1)  # one process uses one GPU; several GPUs take --processes, never DataParallel
    return args


def check_unread(args: "TrainingArguments") -> None:
    """Refuses fields that the optimizer or the schedule of its rate would pass over, or take for something else.

    Raises:
        RecipeError: With the first of them.
    """
    optim, kind = (str(getattr(word, "value", word)) for word in (args.optim, args.lr_scheduler_type))
    options: Any = args.lr_scheduler_kwargs or {}
    decay = options.get("num_decay_steps")
    warms_up = optim in ("schedule_free_adamw", "schedule_free_sgd")  # by itself, whatever the schedule
    refusals = [
        (
            kind == "warmup_stable_decay" and not (is_number(decay) and decay >= 0 and decay % 1 == 0),
            "trainer.lr_scheduler_type: warmup_stable_decay does not know over how many steps to decay",
            "say trainer.lr_scheduler_kwargs: {num_decay_steps: 200}, a whole number of steps and not a share of them",
        ),
        (
            kind.startswith("constant") and options,
            f"trainer.lr_scheduler_kwargs: {kind} reads none",
            "drop it, or take another lr_scheduler_type",
        ),
        (
            kind in ("constant", "reduce_lr_on_plateau", "greedy") and args.warmup_steps and not warms_up,
            f"trainer.warmup_steps: lr_scheduler_type {kind} has no warmup",
            "say trainer.lr_scheduler_type: constant_with_warmup, or drop it",
        ),
        (
            warms_up and 0 < args.warmup_steps < 1,
            f"trainer.warmup_steps: {optim} divides by it, and a share of the steps would raise its first rates",
            "say a whole number",
        ),
    ]
    if optim.startswith(("galore", "apollo")):
        refusals += [
            (getattr(args, name) != default, f"trainer.{name}: {optim} does not read it for all weights", "drop it")
            for name, default in _UNPROJECTED.items()
        ]
    for refused, what, hint in refusals:
        if refused:
            raise RecipeError(what, hint=hint)


def check_compiler(args: "TrainingArguments") -> None:
    """Compiles a sum, because whether a backend works here depends on packages, a compiler and the device.

    Raises:
        RecipeError: It does not.
    """
    import torch

    backend, mode = args.torch_compile_backend or "inductor", args.torch_compile_mode
    try:
        with torch.random.fork_rng():
            torch.compile(lambda value: value + 1, backend=backend, mode=mode)(torch.zeros(2, device=args.device))
    except Exception as error:  # each backend fails in its own way
        what = f"trainer.torch_compile_backend: {backend} does not work on this machine: {first_line(error)}"
        raise RecipeError(what, hint="leave torch_compile out") from error
    finally:
        torch.compiler.reset()


def _machine_defaults(loaded: Loaded) -> dict[str, Any]:
    """Adds to the trainer's fields what this machine decides: without an accelerator, plain float32 on the CPU."""
    import torch

    values = {**loaded.recipe.trainer, **_kept_order(loaded), "output_dir": loaded.recipe.output_dir}
    if values.get("optim") == "muon":  # not one of transformers' names; `train.build` puts it in the place of this one
        values["optim"] = "adamw_torch"
    values["save_total_limit"] = None  # CheckpointKeeper removes old checkpoints, after the new one is whole
    values["activation_checkpointing"] = loaded.checkpointing  # the new name, which wins over the old
    values.setdefault("logging_nan_inf_filter", False)  # it would print the last good loss for a broken one
    values.setdefault("disable_tqdm", not sys.stderr.isatty())
    values.setdefault("ddp_timeout", 6 * 3600)  # the other processes wait while the first one tokenises
    if not torch.accelerator.is_available():
        values.setdefault("use_cpu", True)
        if not values.get("fp16"):
            values.setdefault("bf16", False)
        values.setdefault("dataloader_pin_memory", False)
    return values


def _kept_order(loaded: Loaded) -> dict[str, Any]:
    """Returns the fields with which the stage's trainer takes rows in the order of the data section, if it has one.

    Raises:
        RecipeError: The trainer shuffles rows by its fields, or always.
    """
    recipe = loaded.recipe
    if not recipe.data.keeps_order:
        return {}
    key = "data.schedule" if recipe.data.schedule else "data.order"
    if recipe.stage == "kto":
        why = "two answers to one prompt must not follow each other, so kto shuffles its rows"
        raise RecipeError(f"{key} orders the rows, but {why}", hint="drop it")
    fields = {"shuffle_dataset": False} if STAGES[recipe.stage].family == "sampling" else {}
    fields = fields or {"train_sampling_strategy": "sequential"}
    for name, value in ({"shuffle_dataset": False} | fields).items():
        if recipe.trainer.get(name, value) != value:
            raise RecipeError(f"trainer.{name} shuffles the rows that {key} orders", hint="drop one of the two")
    return fields


def verify_template(job: Job) -> "Proof | None":
    """Refuses a template whose loss mask is wrong for this tokenizer and data, before anything is trained with it.

    Raises:
        TemplateError: With the checks that failed.
    """
    proof = prove_template(job)
    failed = [finding for finding in proof.failed if finding.severity == "error"] if proof else []
    if failed and job.template:
        what = "; ".join(f"{finding.check}: {finding.message}" for finding in failed)
        raise TemplateError(what, where=f"chat template {job.template.name}")
    return proof


def check_adapter(loaded: Loaded, model: Any) -> None:
    """Refuses modules that the model does not have, or that peft cannot adapt or train; it is content if one is there.

    Raises:
        RecipeError: The adapter to go on from was trained on another model.
        SpecError: With each name, and what may have been meant.
    """
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    recipe = loaded.recipe
    spec, section = recipe.adapts, recipe.section
    assert spec is not None, "the caller has looked"
    _check_base(recipe.model, spec.name_or_path)
    options = spec.options
    saved = options.get("modules_to_save") or []
    targets = None if spec.type in ("adaption_prompt", "ln_tuning") else options.get("target_modules")
    modules = {name: module for name, module in model.named_modules() if name}
    adaptable = (nn.Linear, nn.Embedding, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)]
    linear = {name.rpartition(".")[2] for name in linears}
    known = {name.rpartition(".")[2] for name, module in modules.items() if any(True for _ in module.parameters())}
    known = {name for name in known if not name.isdecimal()}
    problems = []
    listed = targets if isinstance(targets, list) else []
    if targets == "all-linear":
        adapted = linears
    elif isinstance(targets, str):
        try:
            adapted = [name for name in modules if re.fullmatch(targets, name)]
        except re.error as error:
            adapted, problems = [], [f"{section}.target_modules is no regular expression: {error}"]
        if not adapted:
            hint = f"say [{targets}]" if targets in linear else did_you_mean(targets.lower(), ("all-linear", *linear))
            hint = hint or "or say all-linear"
            problems.append(f"{section}.target_modules: no module's whole name matches {targets!r}; {hint}")
        listed = [name for name in adapted if not isinstance(modules[name], adaptable)][:1]
    else:
        adapted = [name for name in modules if targets is None or _is_named(name, listed)]
    for key, names, choices in (("target_modules", listed, linear), ("modules_to_save", saved, known)):
        for name in names:
            found = [modules[full] for full in modules if _is_named(full, [name])]
            others = choices - {name}
            hint = did_you_mean(name, others) or f"it has {', '.join(sorted(others))}"
            if not found:
                problems.append(f"{section}.{key}: the model has no module {name!r}; {hint}")
            elif key == "target_modules" and (other := next((m for m in found if not isinstance(m, adaptable)), None)):
                problems.append(
                    f"{section}.{key}: {name!r} is a {type(other).__name__}, which takes no adapter; {hint}"
                )
            elif key == "modules_to_save" and (why := _untrainable(found, recipe, model)):
                problems.append(f"{section}.{key}: {name!r} {why}; {hint}")
    if not model.can_generate() and listed and set(listed) <= set(head_modules(model)):
        problems.append(
            f"{section}.target_modules names the head alone, which is trained in full as it is; name other modules"
        )
    if options.get("use_dora") and recipe.quantization == "int8" and not torch.accelerator.is_available():
        why = "bitsandbytes cannot run int8 weights under DoRA on a CPU"
        problems.append(f"{section}.use_dora: {why}; say nf4, or drop one")
    if not problems:
        problems += _unmatched(options, section, adapted, model)
    if targets == []:
        problems.append(f"{section}.target_modules is empty; say all-linear, or name modules")
    if problems:
        raise SpecError([f"{loaded.where(problem)}: {problem}" for problem in problems])


def _check_base(model: ModelSpec, adapter: str | None) -> None:
    """Refuses to put an adapter on another model than it was trained on, such as the one that it is merged into."""
    from ..evals import checkpoints

    name = str(model.name_or_path)
    if adapter is not None and (why := checkpoints.other_than_base(Path(adapter), name, model.revision)):
        own = f"base_model_name_or_path in {adapter}/adapter_config.json"
        hint = f"name its base in model.name_or_path (and model.revision); if the two are one, name yours as {own}"
        raise RecipeError(f"adapter.name_or_path: {why}", hint=hint)


def _is_named(name: str, ends: list[str]) -> bool:
    """Says whether a module or a weight is named by one of some names or their ends, as peft reads lists of them."""
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _unmatched(options: dict[str, Any], section: str, adapted: list[str], model: Any) -> Iterator[str]:
    """Yields what is named in an adapter's fields and is nowhere in the model, which peft passes over with a warning.

    Args:
        options: The fields.
        section: Where they stand.
        adapted: The modules that ``target_modules`` names.
        model: The model, as it is before.
    """
    for key in ("rank_pattern", "alpha_pattern", "exclude_modules"):
        given = options.get(key) or ()
        for pattern in [given] if isinstance(given, str) else given:
            whole = pattern if isinstance(given, str) else rf"(.*\.)?({pattern})"
            is_list = isinstance(given, list)
            if not any(_is_named(name, [pattern]) if is_list else re.fullmatch(whole, name) for name in adapted):
                hint = did_you_mean(pattern, {name.rpartition(".")[2] for name in adapted})
                hint = hint or "a pattern stands for the end of a module's name"
                yield f"{section}.{key}: {pattern!r} matches none of the modules that are adapted; {hint}"
    for name in options.get("target_parameters") or ():
        if not any(_is_named(own, [name]) for own, _ in model.named_parameters()):
            yield f"{section}.target_parameters: the model has no parameter {name!r}"
    rows, given = model.get_input_embeddings().weight.shape[0], options.get("trainable_token_indices") or ()
    for index in [i for group in given.values() for i in group] if isinstance(given, dict) else given:
        if not 0 <= index < rows:
            yield f"{section}.trainable_token_indices: there is no token {index}; the vocabulary ends at {rows - 1}"


def _untrainable(modules: "list[Any]", recipe: Recipe, model: Any) -> str | None:
    """Says why modules cannot be trained in full beside adapters; None if they can."""
    from torch import nn

    body = getattr(model, model.base_model_prefix, None)
    for module in modules:
        if isinstance(module, nn.ModuleList | nn.ModuleDict) or module is body:
            return "holds all layers, and adapters need a frozen one; train without, or name a part"
        if not any(True for _ in module.parameters()):
            return f"is a {type(module).__name__}, which has no weights to train"
        if recipe.quantization and module is not model.get_output_embeddings():
            packed = [part for part in module.modules() if isinstance(part, nn.Linear)]
            if packed and module not in model.children():
                return "is quantized, and quantized weights cannot be trained in full"
    return None
