"""What `check` says a run will need: a training step of the recipe, on a machine, in words and as a table."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ..chat_templates.errors import did_you_mean
from ..data_tools.files import read_json
from ..data_tools.specfile import load_document
from . import architectures, estimate, launch
from .architectures import Architecture, Made
from .errors import RecipeError
from .estimate import GIB, Machine, ModelSize, Reader, Setup
from .load import Loaded
from .schema import LoraSpec

_DEVICES = Path(__file__).parent / "devices.yaml"
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_USABLE = 0.9  # of a device's memory: the rest is left to CUDA's context, kernels' workspaces and fragmentation
_PROMPT = 512  # tokens of a prompt, where none was read
_NOTHING: Made = {}
_WHOLE = re.compile(r"NVIDIA|GEFORCE|TESLA|SXM\d?|PCIE|HBM\w+|\d+GB")  # what a device's name says beside the table's
_PAIRED = ("dpo", "reward", "orpo")
_OFFLOADS = ("offload_optimizer", "offload_param")  # DeepSpeed's keys


@dataclass(frozen=True)
class Device:
    """A device of the table.

    Attributes:
        name: Its name.
        memory: In bytes.
        flops: Dense bfloat16 operations a second.
    """

    name: str
    memory: float
    flops: float


@dataclass(frozen=True)
class Assumptions:
    """What a user says of the machine and the run.

    Attributes:
        device: The name of a device of the table, `cpu`, or None for any GPU.
        accelerate: The name of an accelerate config, or its path.
        processes: How many train together; by default those of the accelerate config, else one.
        tokens: Training tokens of the run where its data is not read, whatever the recipe says.
        utilization: The share of the device's peak that a run reaches, recomputed layers counted.
        price: Of a device for an hour.
        table: Whether the table over batch, ZeRO and adapters is wanted.
    """

    device: str | None = None
    accelerate: str | None = None
    processes: int | None = None
    tokens: float | None = None
    utilization: float = 0.4
    price: float | None = None
    table: bool = False


@dataclass(frozen=True)
class RunSize:
    """What is known of a run once its data is read.

    Attributes:
        tokens: That it trains on, in all processes.
        size: The model's parameters.
    """

    tokens: int
    size: ModelSize


def devices() -> dict[str, Device]:
    """Returns the table of devices."""
    table = yaml.safe_load(_DEVICES.read_text())
    return {name: Device(name, entry["memory"] * 1e9, entry["tflops"] * 1e12) for name, entry in table.items()}


def peak_of(name: str) -> float | None:
    """Returns the bfloat16 FLOPs a second of a device by the name that CUDA gives it; None if the table has it not.

    Hopper's PCIe and NVL boards, laptops' and others of the name are slower than those of the table, and a slice (MIG)
    is a part of one: whatever else the name says is not known.
    """
    words = set(name.replace("-", " ").upper().split())
    if words & {"H100", "H200"} and "PCIE" in words:
        return None
    known = {each: device for each, device in devices().items() if set(each.upper().split("-")) <= words}
    best = max(known, key=len, default="")
    whole = all(_WHOLE.fullmatch(word) for word in words - set(best.upper().split("-")))
    return known[best].flops if best and whole else None


def machine_of(assumed: Assumptions) -> Machine:
    """Reads what is launched, from an accelerate config if one is named.

    Raises:
        InputError: There is no such config or device, or the config cannot be read.
    """
    if assumed.device not in (None, "cpu", *devices()):
        known = (*devices(), "cpu")
        hint = did_you_mean(str(assumed.device), known) or f"known: {', '.join(known)}"
        raise RecipeError(f"--device: {assumed.device} is not in the table of devices", hint=hint)
    if assumed.accelerate is None:
        return Machine(gpu=assumed.device != "cpu", processes=assumed.processes or 1)
    config = load_document(launch.find_config(assumed.accelerate)).value
    zero = config.get("deepspeed_config") or {}
    if file := zero.get("deepspeed_config_file"):  # DeepSpeed's own, which says it in other words
        own = read_json(Path(file))
        if not isinstance(own, dict):
            what = f"--accelerate {assumed.accelerate}: deepspeed_config_file: {file} cannot be read as JSON"
            raise RecipeError(what, hint="its path leads from the current directory")
        said = own.get("zero_optimization") or {}
        offloads = {f"{name}_device": (said.get(name) or {}).get("device") for name in _OFFLOADS}
        zero = {"zero_stage": said.get("stage", 0), **offloads}
    return Machine(
        gpu=assumed.device != "cpu" and config.get("use_cpu") not in (True, "yes"),  # accelerate reads YAML 1.1
        processes=assumed.processes or config.get("num_processes", 1),
        zero=zero.get("zero_stage", 0),
        fsdp=config.get("distributed_type") == "FSDP",
        offload_optimizer=zero.get("offload_optimizer_device") not in (None, "none"),
        offload_weights=zero.get("offload_param_device") not in (None, "none"),
    )


def setup_of(
    loaded: Loaded, architecture: Architecture, machine: Machine, size: ModelSize | None = None, made: Made = _NOTHING
) -> Setup:
    """Describes a training step of a recipe.

    Args:
        loaded: The recipe.
        architecture: Its model's.
        machine: Where it runs.
        size: The model's parameters, where they were counted in it; by default they are counted by its shape.
        made: What a pipeline's earlier steps will have written.
    """
    recipe, trainer = loaded.recipe, loaded.recipe.trainer
    stage, family = recipe.stage, loaded.stage.family
    labels = (recipe.classify and recipe.classify.labels) or ("no", "yes")
    outputs = None if not loaded.stage.headed else 1 if stage == "reward" else len(labels)
    size = size or estimate.size_of(loaded, architecture, outputs)
    ranks = estimate.adapted(loaded, architecture)
    as_saved = "float32" if ranks is None else architecture.dtype  # what `auto` means
    width = _BYTES[as_saved if recipe.model.dtype == "auto" else recipe.model.dtype]
    by_default = machine.gpu and family not in ("masked", "classify") and not trainer.get("fp16")  # TRL's configs
    mixed = trainer.get("bf16", by_default) or trainer.get("fp16")
    accumulated, batch = loaded.option("gradient_accumulation_steps"), loaded.option("per_device_train_batch_size")
    kernel = recipe.model.attn_implementation or "sdpa"
    # TRL keeps a reference that it was given, though all that it says is computed beforehand.
    given = _has_reference(loaded) or (stage in ("dpo", "kto") and recipe.adapts is not None)
    others = {"reference": float(width * size.total)} if recipe.loads_reference and given else {}
    said, readers = str(loaded.option("optim_args") or ""), {}
    for name, frozen in _frozen(loaded).items():
        shape = frozen.shape(made)
        if isinstance(shape, Architecture):
            readers[name] = Reader(shape, frozen.headed, frozen.passes)
            if frozen.stays:
                others[name] = float(
                    shape.parameters() * _BYTES[shape.dtype if frozen.dtype == "auto" else frozen.dtype]
                )
    setup = Setup(
        architecture=architecture,
        size=size,
        machine=machine,
        batch=batch,
        rows_each=2 if stage in _PAIRED else 1,
        length=row_length(loaded),
        weight_bytes=width,
        compute_bytes=2 if mixed else width,
        mixed=bool(mixed),
        bits=estimate.QUANTIZED_BITS.get(recipe.quantization or "", 0),
        ranks=ranks,
        tables=estimate.saved_tables(loaded, architecture),
        optimizer=loaded.option("optim") or "adamw_torch_fused",
        optim_args=dict(pair.split("=", 1) for pair in said.replace(" ", "").split(",") if "=" in pair),
        projected=estimate.projected(loaded, architecture),
        accumulates=accumulated > 1,
        checkpointing=loaded.checkpointing,
        attention="flash" if kernel.startswith(("flash", "kernels-community")) else kernel,
        masked=bool(loaded.option("packing")) or batch > 1 or stage in _PAIRED,
        loss=loss_path(loaded),
        chunk=loaded.option("chunk") or 0,
        share=recipe.objective.mlm_probability if recipe.objective else 0,
        others=others,
        turns=(loaded.option("steps_per_generation") or accumulated) if family == "sampling" else 0,
        passes=_passes(loaded),
        readers=readers,
    )
    if stage != "ppo" or (recipe.critic and recipe.critic.shared):
        return setup
    total = architecture.parameters(1)  # a model of its own, trained whole, whatever the policy trains
    size, alone = ModelSize(total, total, architecture.table), {"others": {}, "turns": 0, "passes": 0, "readers": {}}
    return replace(
        setup,
        critic=replace(setup, size=size, ranks=None, tables=frozenset(), bits=0, loss="head", weight_bytes=4, **alone),
    )


def token_flops(loaded: Loaded, size: ModelSize) -> float:
    """Returns the FLOPs of training on a token, attention scores left out, since rows may be of any length.

    Of a model whose layers are not known it is 6 N, or 4 N and 6 for each weight of its adapters.
    """
    architecture = architectures.find(loaded, _NOTHING)
    if isinstance(architecture, str):
        return 6.0 * size.total if size.trainable == size.total else 4.0 * size.total + 6.0 * size.trainable
    setup = setup_of(loaded, architecture, Machine(), size)
    return estimate.flops_per_token(replace(setup, length=0, passes=0, readers={}))[0]


def row_length(loaded: Loaded) -> int:
    """Returns the tokens of a row at most; a prompt that was not read is taken for one of 512."""
    answer = loaded.option("max_completion_length")
    if loaded.stage.family == "sampling":
        return _PROMPT + (answer or 256)
    return loaded.option("max_length") or 1024


def loss_path(loaded: Loaded) -> str:
    """Says how a stage computes logits, as ``estimate.Setup.loss`` has it."""
    if loaded.stage.headed:
        return "head"
    if loaded.recipe.objective:
        return "masked"
    if loaded.recipe.stage == "distill":
        return "chunked"
    return "full" if loaded.recipe.stage == "orpo" or loaded.option("label_smoothing_factor") else "fused"


def _has_reference(loaded: Loaded) -> bool:
    """Says whether a run asks the model as it was for log-probabilities, at each step."""
    stage = loaded.recipe.stage
    if stage in ("dpo", "kto"):
        return not loaded.option("precompute_ref_log_probs")
    return stage == "ppo" or (stage in ("grpo", "rloo") and bool(loaded.option("beta")))


def _passes(loaded: Loaded) -> float:
    """Counts forward passes of a token beside the trained one's: of references, samples, samples' log-probabilities.

    What becomes of an answer once it is sampled is computed once, however often it is learnt from.
    """
    passes = float(_has_reference(loaded))
    if loaded.recipe.stage == "kto" and loaded.option("loss_type") != "apo_zero_unpaired":
        return 2 * passes + 1  # the mismatched answers, by the model and its reference
    if loaded.stage.family == "sampling":
        return (passes + 1 + _old_passes(loaded)) / _iterations(loaded)
    return passes


def _old_passes(loaded: Loaded) -> int:
    """Counts the passes for the log-probabilities with which answers were sampled, and for PPO's values of them."""
    recipe, accumulated = loaded.recipe, loaded.option("gradient_accumulation_steps")
    if recipe.stage == "ppo":
        return 1 if recipe.critic and recipe.critic.shared else 2
    if recipe.stage == "grpo":  # TRL takes the step's own, where an answer is learnt from in one step
        return int(accumulated % ((loaded.option("steps_per_generation") or accumulated) * _iterations(loaded)) > 0)
    return int(recipe.stage == "rloo")


def _iterations(loaded: Loaded) -> int:
    """Returns how often a sampled answer is learnt from."""
    return loaded.option("num_iterations") or 1


@dataclass(frozen=True)
class _Frozen:
    """A model of its own that a run asks: its name, how often it reads a token, whether it stays beside the trained."""

    model: str
    passes: float
    headed: bool
    stays: bool = True
    dtype: str = "auto"
    revision: str | None = None

    def shape(self, made: Made) -> Architecture | str:
        """Returns what it is made of, or why that is not known."""
        return architectures.named(self.model, made, self.revision)


def _frozen(loaded: Loaded) -> dict[str, _Frozen]:
    """Returns the teacher and the reward models of a run.

    A teacher whose answers are kept reads each row once, before the training and whatever the number of epochs; where
    `max_steps` ends the run, that is taken for one pass over what is trained on.
    """
    recipe, found = loaded.recipe, {}
    if (teacher := recipe.teacher) and not _unasked(loaded):
        kept = teacher.top_k is not None or loaded.stage.headed
        epochs = loaded.option("num_train_epochs") if kept and loaded.option("max_steps") <= 0 else 1
        spec = {"dtype": teacher.dtype, "revision": teacher.revision}
        found["teacher"] = _Frozen(teacher.name_or_path, 1 / epochs, loaded.stage.headed, stays=not kept, **spec)
    terms = [str(term.model) for term in (*recipe.rewards, recipe.gold) if term and term.model]
    passes = 1 / _iterations(loaded)
    return found | {
        f"reward model {number}": _Frozen(term, passes, headed=True) for number, term in enumerate(terms, 1)
    }


def _unasked(loaded: Loaded) -> bool:
    """Says whether a distillation weighs nothing that its teacher says, and so never loads it."""
    return loaded.recipe.stage == "distill" and loaded.option("alpha") == 1 and not loaded.option("hidden_cosine")


# --- In words ---


def lines(
    loaded: Loaded, assumed: Assumptions, run: RunSize | None = None, made: dict[str, Architecture | int] | None = None
) -> list[str]:
    """Says what a run needs: parameters, memory, compute, time.

    Args:
        loaded: The recipe.
        assumed: What the user says of the machine.
        run: What is known of the run, where its data was read.
        made: What a pipeline's earlier steps will have written; this run's model is added to it.

    Raises:
        RecipeError: The machine is not one.
    """
    machine, made = machine_of(assumed), {} if made is None else made
    architecture = architectures.find(loaded, made)
    if isinstance(architecture, str):
        stored = estimate.stored_parameters(Path(str(loaded.recipe.model.name_or_path)))
        counted = [_counted(run.size)] if run else [f"model: {count(stored)} parameters"] if stored else []
        return [*counted, f"no estimate of memory and compute: {architecture}"]
    made[str(Path(loaded.recipe.output_dir).absolute())] = architecture
    setup = setup_of(loaded, architecture, machine, run and run.size, made)
    found = [_counted(setup.size) + (f" ({architecture.source})" if architecture.source else "")]
    found += _memory_lines(setup, assumed)
    found += _compute_lines(loaded, setup, assumed, run)
    unknown = {name: frozen.shape(made) for name, frozen in _frozen(loaded).items() if name not in setup.readers}
    found += [f"{name}: in none of these figures: {why}" for name, why in unknown.items()]
    return [*found, *(_table(loaded, setup, assumed, made) if assumed.table else [])]


def _counted(size: ModelSize) -> str:
    trained = "all trained" if size.trainable == size.total else f"{count(size.trainable)} trained ({size.trainable:,})"
    if not size.trainable:
        trained = "what the adapter trains of them is not known by its fields alone, and left out"
    return f"model: {count(size.total)} parameters ({size.total:,}), {trained}"


def _memory_lines(setup: Setup, assumed: Assumptions) -> list[str]:
    """Says what a device holds at the peak of a step, and the largest batch that fits."""
    moment, parts = estimate.peak(setup)
    named = ", ".join(f"{part} {size / GIB:.2f}" for part, size in parts.items())
    machine, rows = setup.machine, setup.batch * setup.rows_each
    where = f"each of {machine.processes} {'GPUs' if machine.gpu else 'processes'}" if machine.processes > 1 else ""
    where = where or ("a GPU" if machine.gpu else "the CPU")
    found = [
        f"memory: {sum(parts.values()) / GIB:.2f} GiB on {where}{_sharding(machine)} at its peak, the {moment} "
        f"({rows} row{'s' * (rows > 1)} of {setup.length:,} tokens, {8 * setup.compute_bytes}-bit"
        f"{', checkpointed' if setup.checkpointing else ''})",
        f"  GiB: {named}",
    ]
    if host := estimate.host_bytes(setup):
        found.append(f"  and {host / GIB:.2f} GiB of the host's memory for each process")
    if machine.gpu:
        chosen = [devices()[assumed.device]] if assumed.device else devices().values()
        fitting = [f"{device.name} {estimate.largest_batch(setup, _USABLE * device.memory)}" for device in chosen]
        found.append(f"  largest per_device_train_batch_size in {_USABLE:.0%} of a device: {', '.join(fitting)}")
    return found


def _sharding(machine: Machine) -> str:
    """Names what is split over processes, and how."""
    if machine.fsdp:
        return " by FSDP"
    offload = " with offload" if machine.offload_optimizer or machine.offload_weights else ""
    return f" by ZeRO-{machine.zero}{offload}" if machine.zero else ""


def _compute_lines(loaded: Loaded, setup: Setup, assumed: Assumptions, run: RunSize | None) -> list[str]:
    """Says what the run computes, and how long that takes on a device."""
    accumulated, limit = loaded.option("gradient_accumulation_steps"), loaded.option("max_steps")
    per_step = setup.tokens * accumulated * setup.machine.processes
    if run:
        tokens: float | None = run.tokens
    elif limit > 0:
        tokens = assumed.tokens or limit * per_step
    else:
        mixture = loaded.recipe.data.tokens
        tokens = assumed.tokens or (mixture and mixture * loaded.option("num_train_epochs"))
    model, again = estimate.flops_per_token(setup)
    attention = 1 - estimate.flops_per_token(replace(setup, length=0))[0] / model
    recomputed = f"; {again / model:.0%} more to compute checkpointed layers again" if again else ""
    found = [
        f"compute: {model:.3g} FLOPs a token of rows of {setup.length:,}, {attention:.0%} of them attention{recomputed}"
    ]
    if tokens is None:
        said = f"a step has at most {count(per_step)} tokens; how many the run has, the data or --tokens says"
        return [*found, f"  {said}"]
    bound = "at most " if limit > 0 and not (run or assumed.tokens) else ""
    steps = f", {math.ceil(tokens / per_step):,} steps of {count(per_step)} tokens if rows are full" if not run else ""
    found.append(f"run: {bound}{count(tokens)} tokens, {model * tokens:.2e} FLOPs{steps}")
    device = devices().get(assumed.device or "")
    if device:
        speed = device.flops * setup.machine.processes * assumed.utilization
        hours = (model + again) * tokens / speed / 3600
        bill = hours * setup.machine.processes * (assumed.price or 0)
        cost = "" if assumed.price is None else f", {bill:,.2f} at {assumed.price:g} an hour"
        sampling = "; generation is slower than that" if setup.turns else ""
        found.append(
            f"time: {hours:.3g} hours on {setup.machine.processes} {device.name} at {assumed.utilization:.0%} of "
            f"{device.flops / 1e12:g} TFLOP/s, an assumption{cost}{sampling}"
        )
    return found


def _table(loaded: Loaded, setup: Setup, assumed: Assumptions, made: Made) -> list[str]:
    """Tabulates memory over batch, ZeRO stage and adapter; a star where it fits into the named device."""
    processes = setup.machine.processes if setup.machine.processes > 1 else 8
    machines = {
        "one": Machine(setup.machine.gpu),
        "DDP": Machine(setup.machine.gpu, processes),
        **{f"ZeRO-{stage}": Machine(setup.machine.gpu, processes, stage) for stage in (1, 2, 3)},
        "3+offload": Machine(setup.machine.gpu, processes, 3, offload_optimizer=True, offload_weights=True),
    }
    device = devices().get(assumed.device or "")
    fits = f"; * fits into {_USABLE:.0%} of {device.name}'s {device.memory / 1e9:g} GB" if device else ""
    found = [f"plan: GiB on each device, {processes} of them but for the first column{fits}"]
    found.append("  " + "".join(f"{name:>11}" for name in ("adapter", "batch", *machines)))
    for name, changed in _adapters(loaded, setup, made).items():
        for batch in sorted({1, 2, 4, 8, 16, setup.batch}):
            cells = []
            for machine in machines.values():
                size = sum(estimate.peak(replace(changed, machine=machine, batch=batch))[1].values())
                star = "*" if device and size <= _USABLE * device.memory else " "
                cells.append(f"{size / GIB:.2f}{star}")
            found.append("  " + "".join(f"{cell:>11}" for cell in (name, str(batch), *cells)).rstrip())
    return found


def _adapters(loaded: Loaded, setup: Setup, made: Made) -> dict[str, Setup]:
    """Returns the step with all weights trained, with LoRA, and with LoRA on a quantized base."""
    recipe, found = loaded.recipe, {}
    lora = recipe.adapts if recipe.adapts and recipe.adapts.type == "lora" else LoraSpec().adapter()
    sections = {"full": (None, None), "lora": (lora, None), "qlora": (lora, recipe.quantization or "nf4")}
    if recipe.model.config is not None or recipe.objective is not None:
        del sections["lora"], sections["qlora"]  # trained whole, as the schema has it
    for name, (section, quantization) in sections.items():
        update = {"lora": None, "adapter": section, "quantization": quantization}
        changed = replace(loaded, recipe=recipe.model_copy(update=update))
        found[name] = setup_of(changed, setup.architecture, setup.machine, made=made)
    return found


def count(number: float) -> str:
    """Formats 1234567 as 1.23 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
