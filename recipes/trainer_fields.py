"""The fields of a configuration class of TRL, peft or our own, read from its source without importing it.

Importing ``SFTConfig`` takes about ten seconds, most of it torch and transformers; a recipe must be checkable in
well under three. The classes are plain dataclasses, so their source says names, annotations and defaults. A test holds
what is read here against ``dataclasses.fields`` of the imported class. What the annotations leave open, which numbers
and which words a field takes, stands in two tables: the libraries meet a wrong one late, or never.
"""

import ast
import functools
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError, did_you_mean
from ..data_tools.plain_values import is_number

# Where a base class or an enumeration named in a configuration module is defined, if not beside it.
_ELSEWHERE = {
    "TrainingArguments": ("transformers", "training_args.py"),
    "SchedulerType": ("transformers", "trainer_utils.py"),
    "IntervalStrategy": ("transformers", "trainer_utils.py"),
    "SaveStrategy": ("transformers", "trainer_utils.py"),
    "HubStrategy": ("transformers", "trainer_utils.py"),
    "OptimizerNames": ("transformers", "training_args.py"),
    "DebugOption": ("transformers", "debug_utils.py"),
}
# Packages whose classes a configuration class of ours may extend.
_PACKAGES = ("trl", "transformers", "peft")
# Bases that hold no field.
_FIELDLESS = ("PushToHubMixin", "Enum")
# Lists whose class also takes one item by itself, and makes a list of it.
_ONE_WILL_DO: dict[str, tuple[type, ...]] = {"loss_type": (str,)}
# The values of numeric fields, as intervals; `Class.field` where a field means something else in that class. A number
# beside the interval stands for what the field's documentation says of it.
_RANGES: dict[str, str] = {
    "[1, 1e6]": (
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps torch_empty_cache_steps "
        "eval_accumulation_steps save_total_limit dataloader_prefetch_factor ddp_bucket_cap_mb ref_model_sync_steps "
        "precompute_ref_batch_size generation_batch_size steps_per_generation num_iterations num_generations_eval "
        "chunk PPOConfig.num_generations vllm_tensor_parallel_size PromptLearningConfig.num_virtual_tokens"
    ),
    "[2, 1e6]": "num_generations",
    "[1, 65536]": "PeftConfigMixin.r PeftConfigMixin.init_r PeftConfigMixin.target_r",
    "[1, 1e9]": (
        "max_completion_length vllm_max_model_length kl_horizon ddp_timeout pad_to_multiple_of "
        "ClassifyConfig.max_length"
    ),
    "[2, 1e9]": "max_length",
    "[1, 1e9] or -1": "max_steps",
    "(0, 1e6]": (
        "num_train_epochs DPOConfig.beta KTOConfig.beta discopop_tau f_alpha_divergence_coef repetition_penalty "
        "temperature delta epsilon epsilon_high sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_k_neg "
        "vespo_lambda_pos vespo_lambda_neg off_policy_mask_threshold kl_target cliprange cliprange_value "
        "vllm_importance_sampling_clip_max vllm_importance_sampling_cap vllm_server_timeout"
    ),
    "[0, 1e6]": (
        "weight_decay neftune_noise_alpha router_aux_loss_coef center_rewards_coefficient loss_weights "
        "desirable_weight undesirable_weight beta entropy_coef entropy_coef_min entropy_coef_max entropy_coef_delta "
        "entropy_target kl_coef vf_coef missing_eos_penalty hidden_cosine vllm_importance_sampling_clip_min"
    ),
    "[0, 1e12]": "max_grad_norm",  # a huge one is a common way not to clip
    "[0, 1e9]": "warmup_steps eval_delay top_k max_tool_calling_iterations num_completions_to_print",
    "(0, 1) or a whole number up to 1e9": "logging_steps eval_steps save_steps",
    # a learning rate above 1 makes every optimizer here diverge; 1 itself is what schedule-free ones may take
    "[0, 1]": (
        "learning_rate critic_learning_rate label_smoothing_factor ld_alpha ref_model_mixup_alpha min_p gamma lam "
        "alpha DistillationConfig.beta"
    ),
    "[0, 0.5)": "label_smoothing",
    "[0, 1)": "adam_beta1 adam_beta2 PeftConfigMixin.lora_dropout",
    "(0, 1]": "adam_epsilon top_p top_entropy_quantile vllm_gpu_memory_utilization",
    "[0, 4294967295]": "seed data_seed",
    "[0, 1024]": "dataloader_num_workers",
    "[1, 1024]": "dataset_num_proc",
    "[1, 65535]": "vllm_server_port vllm_group_port",
}
# The words of fields that are plain strings, keyed likewise. Enumerations are read from their classes.
_WORDS: dict[str, str] = {
    "packing_strategy": "bfd bfd_split wrapped",
    # not group_by_length and batch_rebalance: transformers draws their order from the global random state, so that a
    # run resumed in a later epoch would see other batches; `packing` spares the padding too
    "train_sampling_strategy": "random sequential",
    "ClassifyConfig.train_sampling_strategy": "group_by_length random sequential",
    "SFTConfig.loss_type": "nll dft chunked_nll",
    "DPOConfig.loss_type": (
        "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft "
        "sigmoid_norm"
    ),
    "KTOConfig.loss_type": "kto apo_zero_unpaired",
    "GRPOConfig.loss_type": "grpo bnpo dr_grpo dapo cispo luspo sapo vespo",
    "f_divergence_type": "reverse_kl forward_kl js_divergence alpha_divergence",
    "importance_sampling_level": "token sequence",
    "scale_rewards": "group batch none",
    "multi_objective_aggregation": "sum_then_normalize normalize_then_sum",
    "vllm_importance_sampling_mode": "token_truncate token_mask sequence_truncate sequence_mask",
    "vllm_mode": "colocate server",
    "vllm_model_impl": "vllm transformers auto",
    "cache_implementation": (
        "static offloaded_static dynamic offloaded quantized sliding_window hybrid hybrid_chunked offloaded_hybrid "
        "offloaded_hybrid_chunked"
    ),
    "pad_to_multiple_of": "auto",
    "log_level": "passive detail debug info warning error critical",
    "log_level_replica": "passive detail debug info warning error critical",
    "report_to": (
        "none all azure_ml comet_ml mlflow neptune tensorboard trackio wandb codecarbon clearml dagshub flyte dvclive "
        "swanlab kubeflow"
    ),
    "include_num_input_tokens_seen": "all non_padding no",
    "include_for_metrics": "inputs loss",
    "dataloader_multiprocessing_context": "fork spawn forkserver",
    "ddp_backend": "nccl gloo mpi xccl hccl cncl mccl tccl",
    "torch_compile_backend": (
        "eager aot_eager inductor aot_ts_nvfuser nvprims_nvfuser cudagraphs ofi fx2trt onnxrt tensorrt "
        "aot_torchxla_trace_once torchxla_trace_once tvm hpu_backend neuron"
    ),
    "torch_compile_mode": "default reduce-overhead max-autotune max-autotune-no-cudagraphs",
}
# Words that a field takes beside those of its class.
_OWN_WORDS = {"optim": ("muon",)}
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""Two names of one field: transformers' new one, which wins, and the old one, in which TRL's default stands."""
# Fields that may be left out but not be null, although their annotation says so.
_NEEDED = ("num_generations",)
_WIDEST = {int: 2**31, float: 1e12}  # of numbers that no table names
_PRIMITIVES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "dict": (dict,),
    "list": (list,),
    "None": (type(None),),
}


@dataclass(frozen=True)
class Field:
    """One field of a configuration class.

    Attributes:
        name: Its name.
        annotation: Its annotation as written, such as ``float | None``.
        default: Its default, or None where the source computes it.
        types: The Python types that a YAML value may have; empty if the annotation is beyond what YAML can say.
        choices: The words that it takes, if they are a fixed set.
        range: The numbers that it takes.
        nested: The configuration class that a mapping is made into, as ``fields_of`` takes it; None for plain values.
    """

    name: str
    annotation: str
    default: Any
    types: tuple[type, ...]
    choices: tuple[str, ...]
    range: "Range | None"
    nested: str | None = None


@dataclass(frozen=True)
class Range:
    """Numbers as the table writes them: an interval, and what it may be besides.

    Attributes:
        text: How they are said in messages.
        low: The lower end of the interval.
        high: Its upper end.
        beside: A number outside of it that means something else.
        whole_to: Where whole numbers beyond it end, if they are allowed.
    """

    text: str
    low: float
    high: float
    beside: float | None = None
    whole_to: float | None = None

    @classmethod
    def read(cls, text: str) -> "Range":
        """Reads an interval, such as ``(0, 1]``."""
        match = re.fullmatch(r"[\[(](\S+), (\S+)[\])](?: or (?:(-?\d+)|a whole number up to (\S+)))?", text)
        assert match is not None, text
        return cls(text, *(number and float(number) for number in match.groups()))  # type: ignore[arg-type]

    def holds(self, value: float) -> bool:
        """Says whether a number is one of them; NaN never is."""
        if self.whole_to is not None and value >= self.high:
            return value <= self.whole_to and value == int(value)
        inside = self.low <= value <= self.high and value not in self._left_out()
        return inside or value == self.beside

    def schema(self) -> dict[str, float]:
        """Returns the keywords of JSON Schema; of numbers that stand apart only the bounds are told."""
        low, high = self.low if self.beside is None else self.beside, self.whole_to or self.high
        left_out = self._left_out()
        return {
            "exclusiveMinimum" if low in left_out else "minimum": low,
            "exclusiveMaximum" if high in left_out else "maximum": high,
        }

    def _left_out(self) -> list[float]:
        """Returns the ends that a round bracket leaves out."""
        return [end for end, bracket in ((self.low, "("), (self.high, ")")) if bracket in self.text]


_RANGE_OF = {name: Range.read(text) for text, names in _RANGES.items() for name in names.split()}


def _named(table: Mapping[str, Any], classes: tuple[str, ...], name: str, *, plain: bool) -> Any:
    """Finds a field in a table, by the class that it is used in or one of its bases, else by its plain name."""
    keys = (*(f"{cls}.{name}" for cls in classes), *([name] if plain else []))
    return next((table[key] for key in keys if key in table), None)


@functools.cache
def fields_of(config: str) -> Mapping[str, Field]:
    """Returns the fields of a configuration class, inherited ones included.

    Args:
        config: ``package:file:class``, such as ``trl:trainer/sft_config.py:SFTConfig``.

    Raises:
        PosttrainError: The package is not installed, or its layout has changed.
    """
    package, file, name = config.split(":")
    lineage: list[str] = []
    fields = _class_fields(_package_folder(package) / file, name, lineage)
    plain = package != "peft"  # whose names, `alpha` for one, mean other things than a trainer's
    return {key: _with_values(field, tuple(lineage), plain=plain) for key, field in fields.items()}


def _with_values(field: Field, classes: tuple[str, ...], *, plain: bool) -> Field:
    """Adds what the tables say of a field in a class, given with its bases from the last to the first."""
    numeric = next((kind for kind in (float, int) if kind in field.types), None)
    found = _named(_RANGE_OF, classes, field.name, plain=plain)
    if found is None and numeric is not None:
        widest = _WIDEST[numeric]
        found = Range(f"[{-widest:.4g}, {widest:.4g}]", -widest, widest)
    words = _named(_WORDS, classes, field.name, plain=plain)
    choices = tuple(words.split()) if words else (*field.choices, *_OWN_WORDS.get(field.name, ()))
    return replace(field, range=found, choices=choices)


def _package_folder(package: str) -> Path:
    """Finds an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PosttrainError(f"the package {package} is not installed", hint=f"pip install {package}")
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(path: Path, name: str) -> tuple[Path, ast.ClassDef]:
    """Finds a class in a module, in the sibling it imports the class from, or in the table above."""
    for node in _parse(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            source = _imported_file(path, node.level, node.module)
            if source is not None:
                return _find(source, name)
    if name in _ELSEWHERE:
        package, file = _ELSEWHERE[name]
        elsewhere = _package_folder(package) / file
        if elsewhere != path:
            return _find(elsewhere, name)
    raise PosttrainError(f"class {name} not found", where=str(path), hint="install the versions in constraints.txt")


def _imported_file(path: Path, level: int, module: str) -> Path | None:
    """Returns the file of a module, or of a package, that another imports from, relatively or by its full name."""
    if level:
        place = path.parents[level - 1] / module.replace(".", "/")
    else:
        package, _, rest = module.partition(".")
        if package not in _PACKAGES or not rest:
            return None
        place = _package_folder(package) / rest.replace(".", "/")
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _class_fields(path: Path, name: str, lineage: list[str]) -> dict[str, Field]:
    """Collects a class's annotated attributes after those of its bases, as ``dataclasses`` does."""
    path, node = _find(path, name)
    lineage.append(name)
    fields: dict[str, Field] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id not in _FIELDLESS:
            fields |= _class_fields(path, base.id, lineage)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if _is_not_settable(statement):
                continue
            field = _field(path, statement.target.id, statement)
            fields[field.name] = field
    return fields


def _is_not_settable(statement: ast.AnnAssign) -> bool:
    """Says whether a field is ``init=False`` or a class variable, so that no user sets it."""
    if ast.unparse(statement.annotation).startswith("ClassVar"):
        return True
    value = statement.value
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return any(k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in keywords)


def _field(path: Path, name: str, statement: ast.AnnAssign) -> Field:
    """Reads one annotated assignment."""
    annotation = ast.unparse(statement.annotation)
    types: list[type] = []
    choices: list[str] = []
    nested = None
    for part in _parts(statement.annotation):
        here = _class_in(path, part) if isinstance(part, str) else None
        if isinstance(part, tuple):
            types.append(str)
            choices.extend(part)
        elif part in _PRIMITIVES:
            types.extend(_PRIMITIVES[part])
        elif part in _ELSEWHERE or (here is not None and here.bases and "Enum" in ast.unparse(here.bases[-1])):
            choices.extend(_enumeration(path, part))
        elif here is not None:
            types.append(dict)
            package = next(folder for folder in path.parents if folder.name in _PACKAGES)
            nested = f"{package.name}:{path.relative_to(package)}:{part}"
    if list in types:
        types.extend(_ONE_WILL_DO.get(name, ()))
    return Field(name, annotation, _default(statement.value), tuple(types), tuple(choices), None, nested)


def _class_in(path: Path, name: str) -> ast.ClassDef | None:
    """Returns the class of a name that a module defines, if it does."""
    return next((node for node in _parse(path).body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _parts(annotation: ast.expr) -> list[str | tuple[str, ...]]:
    """Splits ``dict[str, Any] | Literal["a", "b"] | None`` into ``dict``, ``("a", "b")``, ``None``."""
    if isinstance(annotation, ast.BinOp):
        return _parts(annotation.left) + _parts(annotation.right)
    if isinstance(annotation, ast.Tuple):
        return [part for item in annotation.elts for part in _parts(item)]
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value).removeprefix("typing.")
        if name == "Literal":
            words = ast.literal_eval(annotation.slice)
            return [words if isinstance(words, tuple) else (words,)]
        return _parts(annotation.slice) if name in ("Optional", "Union") else [name]
    return [ast.unparse(annotation).removeprefix("typing.")]


def _default(value: ast.expr | None) -> Any:
    """Evaluates a literal default, plain or inside ``field(default=…)``; None if the source computes it."""
    if isinstance(value, ast.Call):
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def _enumeration(path: Path, name: str) -> list[str]:
    """Returns the string values of an enumeration."""
    _, node = _find(path, name)
    values = []
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            values.append(str(statement.value.value))
    return values


def checkpointing_field(trainer: Mapping[str, Any]) -> str | None:
    """Returns the name by which a recipe says whether activations are recomputed; None where it does not."""
    return next((name for name in CHECKPOINTING if trainer.get(name) is not None), None)


def problems(values: Mapping[str, Any], fields: Mapping[str, Field]) -> list[tuple[str, str, str | None]]:
    """Compares a recipe's ``trainer:`` section with the fields of its configuration class.

    Returns:
        ``(key, what is wrong, hint)`` for every key that is unknown or holds a value that the field does not take.
    """
    found = []
    for key, value in values.items():
        if key not in fields:
            found.append((key, "unknown key", did_you_mean(key, fields)))
        else:
            found += [(key, *problem) for problem in _value_problems(value, fields[key])]
    return found


def _value_problems(value: Any, field: Field) -> Iterator[tuple[str, str | None]]:
    """Yields what is wrong with a value, and a hint."""
    # bool is a subclass of int, yet `learning_rate: true` is a mistake.
    is_stray_bool = isinstance(value, bool) and bool not in field.types
    needed = value is None and field.name in _NEEDED
    if needed or (field.types and (is_stray_bool or not isinstance(value, field.types))):
        yield f"must be {field.annotation}, not {_shown(value)}", "leave it out for the default" if needed else None
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and field.choices and not any(_is_word(item, choice) for choice in field.choices):
            yield f"has no value {item!r}", did_you_mean(item, field.choices) or f"one of {', '.join(field.choices)}"
        elif is_number(item) and field.range:
            if not field.range.holds(item):
                yield f"must be in {field.range.text}, not {_shown(item)}", None
        elif isinstance(item, dict) and field.nested:
            yield from ((f"{key}: {what}", hint) for key, what, hint in problems(item, fields_of(field.nested)))
        elif isinstance(item, dict):
            yield from (
                (f"{key} must be a finite number, not {number!r}", None)
                for key, number in item.items()
                if isinstance(number, float) and not math.isfinite(number)
            )


def _is_word(value: str, choice: str) -> bool:
    """Compares a value with a word, in which a description in brackets, as peft writes it, stands for a number."""
    stem, bracket, _ = choice.partition("[")
    return value == choice or bool(bracket and value.startswith(stem) and value[len(stem) :].isdecimal())


def _shown(value: Any) -> str:
    """Shows a value in a line: not all digits of a number that has thousands."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else f"a number of {len(str(value))} digits"
    return text if len(text) < 80 else f"{text[:77]}..."
