"""Recipes with mistakes, many of them: whether ``check`` and ``train`` decide alike on each.

    python -m tests.recipes.mutations [COUNT] [SEED] [MINUTES]

prints every recipe on which one of them shows a traceback, ``train`` refuses what ``check`` has passed or the other way
round, or a run ends without a step; and a count as it goes. Everything runs in this process, on tiny models, for three
steps. About half of the changes are unusual but right, so that both have something to train.
"""

import contextlib
import copy
import io
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from posttrain import chat_templates
from posttrain.chat_templates.errors import PosttrainError
from posttrain.recipes.check import check_all
from posttrain.recipes.load import load
from posttrain.recipes.stage_table import STAGES
from posttrain.recipes.trainer_fields import Field, fields_of, problems

from ..conftest import build_tokenizer
from .conftest import STAGE_RECIPES, stage_recipe

SECONDS = 90
# Folders that a recipe may name: whole models of several kinds, and broken ones (see ``save_models``).
WHOLE = ("model", "teacher", "reward", "classifier", "three", "foreign", "foreign_reward")
BROKEN = ("cut", "bare", "lacking", "narrow", "torn", "mute", "adapter", "nothing")
_NUMBERS = (-1, 0, 1, 2, 3, 7, -0.5, 0.5, 1.5, 1e-30, 1e30, 10**30, float("nan"), float("inf"), -float("inf"))
_STRANGE = ("", "none", "auto", True, False, None, [], [1], ["a"], {}, {"a": 1}, {"a": float("nan")}, "1", "é\u0000")
_TOP = {
    "lora": (
        *({}, {"r": 4, "target_modules": ["q_proj", "v_proj"]}, {"target_modules": "all-liner"}, {"r": 0}),
        *(
            {"target_modules": ["q_prj"]},
            {"target_modules": "(("},
            {"target_modules": []},
            {"target_modules": ["lm_head"]},
        ),
        *({"modules_to_save": ["lm_heda"]}, {"modules_to_save": ["embed_tokens"]}, {"target_modules": ["norm"]}),
        *({"use_dora": True, "dropout": 0.1}, {"dropout": 1.0}, {"alpha": -1}, {"use_rslora": True}),
    ),
    "quantization": ("nf4", "int8", "nf5"),
    "teacher": (
        *({}, {"name_or_path": "{teacher}", "top_k": 4}, {"name_or_path": "{teacher}", "top_k": 0}),
        *({"name_or_path": f"{{{name}}}"} for name in (*WHOLE, *BROKEN)),
    ),
    "critic": (
        *({}, {"shared": True}, {"shared": True, "name_or_path": "{teacher}"}, {"name_or_path": "{teacher}"}),
        *({"name_or_path": f"{{{name}}}"} for name in (*WHOLE, *BROKEN)),
    ),
    "gold": (
        {"function": "math:sqrt"},
        {"function": "nothing.py:f"},
        {"function": "no.module:f"},
        *({"model": f"{{{name}}}"} for name in (*WHOLE, *BROKEN)),
    ),
    "rewards": (
        *([], [{}], [{"function": "math:nothing"}], [{"function": "builtins:len"}]),
        *([{"model": f"{{{name}}}"}] for name in ("reward", *WHOLE, *BROKEN)),
        *([{"model": "{reward}", "weight": 0.5}, {"model": "{foreign_reward}"}], [{"model": "{foreign_reward}"}]),
    ),
    "classify": (
        *({"problem": "regression"}, {"problem": "multi_label"}, {"pooling": "mean"}, {"labels": ["a", "b"]}),
        *({"class_weights": "balanced"}, {"class_weights": {"0": 2.0, "x": 1.0}}, {"metrics": ["no_such_metric"]}),
    ),
    "score": ({"suite": "quick"}, {"suite": "none.yaml"}, {"suite": 1}),
}
_MODEL = (
    *({"attn_implementation": "eager"}, {"attn_implementation": "flash_attention_2"}, {"attn_implementation": "spda"}),
    *(
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"dtype": "float8"},
        {"layers": [0]},
        {"layers": [5]},
        {"layers": []},
    ),
    *({"chat_template": None}, {"chat_template": "llama3"}, {"chat_template": "qwen3"}, {"revision": "main"}),
    *({"tokenizer": "{teacher}"}, {"tokenizer": "no/such"}, {"name_or_path": "no/such"}, {"name_or_path": "{data}"}),
    *({"name_or_path": None, "config": {"model_type": "llama", "hidden_size": 16}, "tokenizer": "{model}"},),
    *({"name_or_path": None, "config": {"model_type": "lama"}, "tokenizer": "{model}"},),
    *({"name_or_path": f"{{{name}}}"} for name in (*WHOLE, *BROKEN)),
)
# Changes that are right wherever the stage has the section or field.
_MILD_TOP = {
    "lora": (
        *({"r": 2, "alpha": 8, "dropout": 0.1}, {"target_modules": "all-linear", "use_rslora": True}),
        *({"target_modules": ["q_proj"], "use_dora": True}, {"target_modules": r".*\.mlp\..*_proj"}),
        *({"modules_to_save": ["embed_tokens"]}, {"r": 1, "target_modules": ["up_proj", "o_proj"]}),
    ),
    "teacher": ({"name_or_path": "{teacher}"}, {"name_or_path": "{model}"}),
    "critic": ({"shared": True}, {"name_or_path": "{reward}"}, {"name_or_path": "{teacher}"}),
    "gold": ({"model": "{reward}"}, {"model": "{foreign_reward}"}),
    "rewards": ([{"model": "{reward}"}], [{"model": "{reward}", "weight": -0.5}, {"model": "{foreign_reward}"}]),
    "classify": ({"problem": "single_label"}, {"class_weights": "balanced"}, {"labels": ["0", "1"]}),
}
_MILD_TRAINER = (
    *({"learning_rate": value} for value in (0.0, 1e-5, 0.1)),
    *({"per_device_train_batch_size": value} for value in (2, 8)),
    *({"lr_scheduler_type": name} for name in ("linear", "cosine", "constant_with_warmup", "inverse_sqrt")),
    *({"optim": name} for name in ("adafactor", "sgd", "rmsprop", "adagrad", "adamw_torch_fused")),
    *({"warmup_steps": 2}, {"weight_decay": 0.1}, {"max_grad_norm": 0.0}, {"seed": 7, "data_seed": 3}, {"bf16": True}),
    *({"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}, {"neftune_noise_alpha": 5}),
    *({"eval_strategy": "steps", "eval_steps": 2}, {"eval_strategy": "epoch"}, {"save_strategy": "epoch"}),
    *({"logging_steps": 0.5}, {"logging_strategy": "epoch"}, {"num_train_epochs": 0.1, "max_steps": -1}),
    *({"packing": True}, {"packing": True, "packing_strategy": "wrapped"}, {"max_length": 32}, {"max_length": None}),
    *({"loss_type": "dft"}, {"loss_type": "hinge"}, {"loss_type": "ipo"}, {"loss_type": "dr_grpo"}),
    *({"beta": 0.2}, {"beta": 0.0}, {"num_generations": 4}, {"num_iterations": 3}, {"temperature": 0.7}),
    *({"top_k": 5}, {"top_p": 0.9}, {"max_completion_length": 3}, {"scale_rewards": "none"}),
    *({"loss_type": "robust", "label_smoothing": 0.1}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    *({"precompute_ref_log_probs": True}, {"sync_ref_model": True, "ref_model_sync_steps": 2}, {"epsilon": 0.1}),
    *({"kl_coef": 0.0}, {"cliprange": 0.1}, {"vf_coef": 0.5}, {"alpha": 0.5}, {"assistant_only_loss": False}),
    *({"train_sampling_strategy": "sequential"}, {"load_best_model_at_end": False}, {"save_total_limit": 1}),
    *({"dataloader_drop_last": True}, {"average_tokens_across_devices": False}, {"save_only_model": False}),
)
_MILD_DATA = (
    *({"too_long": "truncate"}, {"seed": 5}, {"train": {"path": "{data}", "limit": 30}}),
    *({"train": [{"path": "{data}"}, {"path": "{data}", "weight": 2.0}]}, {"eval": {"path": "{data}", "limit": 5}}),
)
_MILD_MODEL = (
    *({"attn_implementation": "eager"}, {"dtype": "float32"}, {"dtype": "bfloat16"}, {"layers": [1]}),
    *({"name_or_path": "{teacher}"}, {"tokenizer": "{teacher}"}, {"name_or_path": "{classifier}"}),
    *(
        {
            "name_or_path": None,
            "config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2},
            "tokenizer": "{model}",
        },
    ),
)
_DATA = (
    *({"train": {"path": "no.jsonl"}}, {"too_long": "truncate"}, {"too_long": "error"}, {"too_long": "split"}),
    *({"max_prompt_length": 4}, {"max_prompt_length": 1}, {"tokens": 10}, {"max_bad_share": 1.0}, {"seed": -1}),
    *({"train": {"path": "{one}"}}, {"train": {"path": "{empty}"}}, {"train": {"path": "{other}"}}),
    *({"train": []}, {"train": {"path": "{data}", "limit": 1}}, {"train": {"path": "{data}", "limit": 3}}),
    *({"train": {"path": "{data}", "weight": 0}}, {"mix": "weights"}, {"eval": {"path": "{one}"}}, {"eval": []}),
)
_TRAINER = (
    *(
        {"report_to": "wandb"},
        {"report_to": ["tensorboard", "mlflow"]},
        {"optim": "adamw_8bit"},
        {"optim": "galore_adamw"},
    ),
    *(
        {"optim": "adafactor"},
        {"optim": "lomo"},
        {"optim": "stable_adamw"},
        {"optim": "sgd"},
        {"optim": "adamw_torch_4bit"},
    ),
    *({"use_liger_kernel": True}, {"deepspeed": {"zero_optimization": {"stage": 2}}}, {"deepspeed": "none.json"}),
    *({"use_vllm": True}, {"push_to_hub": True}, {"hub_model_id": "a/b"}, {"fsdp": "full_shard"}, {"fsdp": "nothing"}),
    *({"optim_args": "a=b"}, {"optim_args": "garbage"}, {"optim": "adafactor", "optim_args": "relative_step=True"}),
    *({"lr_scheduler_type": name} for name in ("cosine", "constant", "polynomial", "reduce_lr_on_plateau", "greedy")),
    *({"lr_scheduler_type": name} for name in ("warmup_stable_decay", "cosine_with_min_lr", "inverse_sqrt")),
    *({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"nothing": 1}},),
    *({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},),
    *({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1}},),
    *({"bf16": True, "fp16": True}, {"fp16": True}, {"bf16": True}, {"tf32": True}, {"torch_compile_mode": "fast"}),
    *(
        {"load_best_model_at_end": True},
        {"metric_for_best_model": "nothing", "eval_strategy": "steps", "eval_steps": 1},
    ),
    *({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2},),
    *({"load_best_model_at_end": True, "eval_strategy": "epoch", "save_steps": 2},),
    *({"eval_strategy": "steps", "eval_steps": 1}, {"eval_strategy": "epoch"}, {"eval_on_start": True}),
    *(
        {"batch_eval_metrics": True, "eval_strategy": "steps"},
        {"include_for_metrics": ["inputs"], "eval_strategy": "steps"},
    ),
    *({"label_names": ["nothing"], "eval_strategy": "steps"}, {"prediction_loss_only": True, "eval_strategy": "steps"}),
    *({"dataloader_drop_last": True, "per_device_train_batch_size": 1000}, {"per_device_train_batch_size": 1000}),
    *({"dataloader_prefetch_factor": 2}, {"dataloader_persistent_workers": True}, {"dataloader_num_workers": 1}),
    *({"gradient_checkpointing": True}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"x": 1}}),
    *({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},),
    *({"train_sampling_strategy": name} for name in ("group_by_length", "sequential", "batch_rebalance")),
    *({"num_train_epochs": 0.001, "max_steps": -1}, {"num_train_epochs": 1, "max_steps": -1}, {"warmup_steps": 100}),
    *({"save_strategy": "best"}, {"save_strategy": "no"}, {"save_strategy": "epoch"}, {"auto_find_batch_size": True}),
    *({"packing": True}, {"packing": True, "max_length": None}, {"packing": True, "packing_strategy": "wrapped"}),
    *(
        {"assistant_only_loss": False},
        {"completion_only_loss": False},
        {"loss_type": "dft"},
        {"neftune_noise_alpha": 5},
    ),
    *(
        {"max_length": None},
        {"max_length": 4},
        {"max_length": 2},
        {"pad_to_multiple_of": 8},
        {"activation_offloading": True},
    ),
    *(
        {"precompute_ref_log_probs": True},
        {"sync_ref_model": True},
        {"sync_ref_model": True, "ref_model_sync_steps": 1},
    ),
    *({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, {"loss_type": "exo_pair"}, {"loss_type": "ipo"}),
    *({"f_divergence_type": "alpha_divergence"}, {"f_divergence_type": "js_divergence", "loss_type": "hinge"}),
    *(
        {"use_weighting": True},
        {"ld_alpha": 0.5},
        {"padding_free": True},
        {"label_smoothing": 0.1, "loss_type": "robust"},
    ),
    *({"num_generations": 3}, {"num_generations": 4}, {"steps_per_generation": 3}, {"generation_batch_size": 6}),
    *({"generation_batch_size": 8, "steps_per_generation": 2}, {"gradient_accumulation_steps": 2, "num_iterations": 2}),
    *({"generation_kwargs": {"nothing": 1}}, {"generation_kwargs": {"num_beams": 2}}, {"generation_kwargs": "{"}),
    *({"cache_implementation": "static"}, {"cache_implementation": "quantized"}, {"use_transformers_paged": True}),
    *({"loss_type": name} for name in ("grpo", "cispo", "luspo", "sapo", "vespo")),
    *({"importance_sampling_level": "sequence"}, {"scale_rewards": "batch"}, {"top_entropy_quantile": 0.5}),
    *({"use_adaptive_entropy": True}, {"entropy_coef": 0.1}, {"delta": 2.0}, {"off_policy_mask_threshold": 1.0}),
    *({"kl_target": 6.0}, {"kl_target": 6.0, "kl_coef": 0.0}, {"kl_estimator": "k3"}, {"critic_learning_rate": 1e-3}),
    *({"router_aux_loss_coef": 0.1}, {"use_cache": True}, {"debug": "underflow_overflow"}, {"debug": "nothing"}),
    *(
        {"accelerator_config": {"split_batches": True}},
        {"accelerator_config": {"nothing": 1}},
        {"parallelism_config": {}},
    ),
    *({"include_num_input_tokens_seen": "all"}, {"skip_memory_metrics": False}, {"hidden_cosine": 1.0}, {"alpha": 1.0}),
    *({"optim_target_modules": ["q_proj"]}, {"liger_kernel_config": {"rope": True}}, {"torch_empty_cache_steps": 1}),
    *(
        {"chat_template_kwargs": {"a": 1}},
        {"reward_clip_range": [0, 1]},
        {"multi_objective_aggregation": "normalize_then_sum"},
    ),
    *({"full_determinism": True}, {"ddp_backend": "gloo"}, {"ddp_backend": "nccl"}, {"label_smoothing_factor": 0.1}),
)


@dataclass(frozen=True)
class Outcome:
    """What one of the two commands did: ``ok``, ``refused`` or ``traceback``, and what it said."""

    kind: str
    text: str


def mutated(generator: random.Random, folder: Path, models: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Returns a recipe with one to three changes, most of them mistakes, and overrides for the command line."""
    stage = generator.choice(sorted(STAGE_RECIPES))
    recipe = stage_recipe(stage, folder, models["model"], models["teacher"])
    recipe["trainer"] |= {"max_steps": 3, "save_steps": 3}
    places = _places(recipe, folder) | models
    if generator.random() < 0.4:
        recipe["data"]["eval"] = dict(recipe["data"]["train"], limit=8)
    if generator.random() < 0.2 and stage != "classify":
        recipe["lora"] = {"r": 4}
    overrides: list[str] = []
    mild = generator.random() < 0.6
    for _ in range(generator.choice((2, 3, 4) if mild else (1, 1, 2, 3))):
        if isinstance(recipe.get("trainer"), dict):
            (_mild if mild else generator.choice(_MUTATIONS))(generator, recipe, overrides, stage)
    return _filled(recipe, places), overrides


def _places(recipe: dict[str, Any], folder: Path) -> dict[str, str]:
    """Writes files that a mutated recipe may name: one row, none, and rows of another kind."""
    data = Path(recipe["data"]["train"]["path"])
    (folder / "one.jsonl").write_text(data.read_text().splitlines()[0] + "\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "other.jsonl").write_text('{"column": 1}\n' * 20)
    names = {name: str(folder / f"{name}.jsonl") for name in ("one", "empty", "other")}
    return names | {"data": str(data)}


def _filled(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, places) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, places) for item in value]
    name = value[1:-1] if isinstance(value, str) and value[:1] + value[-1:] == "{}" else ""
    return places.get(name, value)


def _fields(stage: str) -> list[Field]:
    return [field for field in fields_of(STAGES[stage].config).values() if field.name not in STAGES[stage].owned]


def _number(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    field = generator.choice([field for field in _fields(stage) if field.range])
    recipe["trainer"][field.name] = generator.choice(_NUMBERS)


def _word(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    field = generator.choice([field for field in _fields(stage) if field.choices])
    word = generator.choice(field.choices)
    recipe["trainer"][field.name] = generator.choice((word, word, word[:-1], word.upper(), f"{word}x", [word]))


def _switch(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    left = ("torch_compile", "use_cpu", "enable_jit_checkpoint")
    field = generator.choice([field for field in _fields(stage) if bool in field.types and field.name not in left])
    recipe["trainer"][field.name] = generator.choice((True, True, False, None, "yes"))


def _type(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    field = generator.choice(_fields(stage))
    recipe["trainer"][field.name] = copy.deepcopy(generator.choice(_STRANGE))


def _setting(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    fitting = [change for change in _TRAINER if change.keys() <= {field.name for field in _fields(stage)}]
    recipe["trainer"] |= copy.deepcopy(generator.choice(fitting))


def _mild(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    """Changes something into what is right but unusual."""
    fields = {field.name for field in _fields(stage)}
    fitting = [change for change in _MILD_TRAINER if change.keys() <= fields and _takes(stage, change)]
    place = generator.choice(("trainer", "trainer", "trainer", "section", "model", "data"))
    if place == "trainer":
        recipe["trainer"] |= generator.choice(fitting)
    elif place == "section":
        fits = [name for name in _MILD_TOP if name == "lora" or name in STAGES[stage].sections]
        name = generator.choice(fits)
        recipe[name] = copy.deepcopy(generator.choice(_MILD_TOP[name]))
        if name == "teacher" and stage == "classify":
            recipe[name] = {"name_or_path": "{classifier}"}
    else:
        changes = {"model": _MILD_MODEL, "data": _MILD_DATA}[place]
        section = {**recipe[place], **copy.deepcopy(generator.choice(changes))}
        recipe[place] = {key: value for key, value in section.items() if value is not None}
    if recipe["trainer"].get("eval_strategy") and "eval" not in recipe["data"]:
        recipe["data"]["eval"] = {"path": "{data}", "limit": 8}


def _takes(stage: str, change: dict[str, Any]) -> bool:
    """Says whether a stage's fields take the words of a change."""
    return not problems(change, fields_of(STAGES[stage].config))


def _section(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    names = [name for name in _TOP if name in ("lora", "quantization", "score") or name in STAGES[stage].sections]
    name = generator.choice(names if generator.random() < 0.9 else sorted(_TOP))
    recipe[name] = copy.deepcopy(generator.choice(_TOP[name]))


def _inner(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    name, changes = generator.choice((("model", _MODEL), ("data", _DATA)))
    if isinstance(recipe.get(name), dict):
        changed = {**recipe[name], **copy.deepcopy(generator.choice(changes))}
        recipe[name] = {key: value for key, value in changed.items() if value is not None}


def _typo(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    sections = [value for value in (recipe, *recipe.values()) if isinstance(value, dict) and value]
    section = generator.choice(sections)
    key = generator.choice(sorted(key for key in section if key))
    at = generator.randrange(len(key))
    section[generator.choice((key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key.upper()))] = section.pop(key)


def _strange(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    sections = [
        value for value in (recipe, recipe.get("model"), recipe.get("data")) if isinstance(value, dict) and value
    ]
    section = generator.choice(sections)
    section[generator.choice(sorted(section))] = copy.deepcopy(generator.choice(_STRANGE))


def _override(generator: random.Random, recipe: dict[str, Any], overrides: list[str], stage: str) -> None:
    field = generator.choice(_fields(stage)).name
    whole = (
        f"trainer.{field}=null",
        f"trainer.{field}=x",
        f"trainer.{field}=-1",
        f"trainer.{field}[0]=1",
        "model=null",
    )
    whole += (
        "trainer.max_length=null",
        "lora={r: 4}",
        "nothing",
        "=",
        "a.b.c=1",
        "stage=sft",
        "trainer={}",
        "trainer=null",
    )
    whole += ("data.eval=null", "quantization=nf4", "lora.target_modules=[q_prj]", "data.train[0].path=x")
    overrides.append(generator.choice(whole))


_MUTATIONS = (
    _number,
    _number,
    _word,
    _switch,
    _type,
    _setting,
    _setting,
    _setting,
    _section,
    _inner,
    _typo,
    _strange,
    _override,
)


def outcomes(recipe: Path, overrides: list[str]) -> tuple[Outcome, Outcome]:
    """Runs ``check`` and then ``train`` on a recipe, in this process, three steps at most."""
    return _outcome(lambda: _check(recipe, overrides)), _outcome(lambda: _train(recipe, overrides))


def _check(recipe: Path, overrides: list[str]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = check_all([recipe], overrides, {}, read_data=True)
    if code:
        raise PosttrainError(printed.getvalue())
    return printed.getvalue()


def _train(recipe: Path, overrides: list[str]) -> str:
    from posttrain.recipes.train import train

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), three_steps() as taken:
        train(load(recipe, overrides))
    if not taken or not taken[-1]:
        raise AssertionError("the run ended without a step")
    return f"{taken[-1]} steps"


@contextlib.contextmanager
def three_steps() -> Iterator[list[int]]:
    """Ends every run after three steps; gives the steps of each run as it ends."""
    from transformers import TrainerCallback, trainer

    taken: list[int] = []

    class ThreeSteps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step >= 3

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            taken.append(state.global_step)

    callbacks: Any = trainer.DEFAULT_CALLBACKS
    callbacks.append(ThreeSteps)
    try:
        yield taken
    finally:
        callbacks.remove(ThreeSteps)


def _outcome(run: Any) -> Outcome:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return Outcome("ok", run())
    except PosttrainError as error:
        return Outcome("refused", str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome("traceback", traceback.format_exc())
    finally:
        signal.alarm(0)


def disagreement(check: Outcome, train: Outcome) -> str | None:
    """Says what is wrong about a pair of outcomes, if anything is."""
    if "traceback" in (check.kind, train.kind):
        return f"traceback in {'check' if check.kind == 'traceback' else 'train'}"
    return None if check.kind == train.kind else f"check: {check.kind}, train: {train.kind}"


def run(count: int, seed: int, models: dict[str, str], minutes: float = 1e9) -> tuple[Counter[str], list[str]]:
    """Tries mutated recipes; returns how often each pair of outcomes came, and each disagreement in words."""
    counts: Counter[str] = Counter()
    found: list[str] = []
    end = time.monotonic() + 60 * minutes
    for number in range(count):
        if time.monotonic() > end:
            break
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            recipe, overrides = mutated(random.Random(f"{seed}/{number}"), folder, models)
            recipe.setdefault("output_dir", str(folder / "run"))
            path = folder / "recipe.yaml"
            path.write_text(yaml.safe_dump(recipe, allow_unicode=True))
            check, train = outcomes(path, overrides)
            wrong = disagreement(check, train)
            counts[wrong or f"both: {check.kind}"] += 1
            if wrong:
                said = f"check: {check.text[-2500:]}\ntrain: {train.text[-2500:]}"
                found.append(f"== {seed}/{number}: {wrong}\n{yaml.safe_dump(recipe)}{overrides}\n{said}")
                print(found[-1], flush=True)
            if number % 10 == 9:
                print(f"-- seed {seed}: {number + 1} recipes, {dict(counts)}", flush=True)
    return counts, found


def save_models(folder: Path) -> dict[str, str]:
    """Saves the models that recipes name, by the names of ``WHOLE`` and ``BROKEN``."""
    from posttrain.recipes.check import save_tiny
    from posttrain.recipes.model import Head
    from transformers import AddedToken

    ours, foreign = build_tokenizer(), build_tokenizer()
    foreign.add_tokens([AddedToken("\u00e9\u00e8", normalized=False)])
    one = Head(("score",), "regression")
    heads = {"reward": one, "foreign_reward": one} | {
        name: Head(labels, "single_label_classification")
        for name, labels in (("classifier", ("0", "1")), ("three", ("0", "1", "2")))
    }
    for name in (*WHOLE, *BROKEN):
        if name == "reward":  # what reads conversations from here on has a template of its own
            for tokenizer in (ours, foreign):
                chat_templates.install(chat_templates.load("chatml"), tokenizer)
        if name != "nothing":
            save_tiny(foreign if name.startswith("foreign") else ours, folder / name, heads.get(name))
    (folder / "nothing").mkdir()
    _break(folder)
    return {name: str(folder / name) for name in (*WHOLE, *BROKEN)}


def _break(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = {name: folder / name / "model.safetensors" for name in BROKEN}
    weights["cut"].write_bytes(weights["cut"].read_bytes()[:-4096])
    weights["bare"].unlink()
    tensors = load_file(weights["lacking"])
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights["lacking"], {"format": "pt"})
    config = folder / "narrow" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 16', '"intermediate_size": 32'))
    (folder / "torn" / "config.json").write_text('{"model_type": "llama",')
    for file in (folder / "mute").glob("*token*"):
        file.unlink()
    for name in ("config.json", "model.safetensors"):
        (folder / "adapter" / name).unlink()
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')


def main() -> int:
    """Runs the command line."""
    import os

    given = [float(text) for text in sys.argv[1:]]
    count, seed, minutes = (*given, *(1000, 0, 1e9)[len(given) :])
    with tempfile.TemporaryDirectory() as name:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_HOME"] = name
        counts, found = run(int(count), int(seed), save_models(Path(name)), minutes)
    print(f"seed {int(seed)}: {sum(counts.values())} recipes, {dict(counts)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
