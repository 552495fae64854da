"""A rehearsal of a run: one step of its own trainer, with its own settings, by a model of some thousand weights.

What a trainer refuses, it mostly refuses when it is built, at the first step or at the first evaluation, in words of
its own library. No list of such refusals stays complete, so ``check`` lets the trainer itself decide.
"""

import contextlib
import io
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .decisions import Ready, placed, trainer_config
from .errors import RecipeError
from .load import Loaded
from .rewards import name_of
from .schema import RewardSpec
from .stage_table import STAGES

if TYPE_CHECKING:
    from ..data_tools.prepare import Prepared
    from .model import Head

_ROW_TOKENS = 16
_STEPS_OF_ROWS = 4
# Settings that a model this small, on this machine and by itself, says nothing about.
_ELSEWHERE = ("use_vllm",)
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

    loaded = ready.job.loaded
    if any(loaded.recipe.trainer.get(name) for name in _ELSEWHERE):
        return
    with tempfile.TemporaryDirectory() as folder, _silently(), placed(loaded):
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


@contextlib.contextmanager
def _silently() -> Any:
    """Keeps what trainers print and warn of to the run itself."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _one_step() -> Any:
    """Returns what ends a run after its first step, so that its schedule is still that of all steps."""
    from transformers import TrainerCallback, TrainerControl

    class OneStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
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
    policy = save_tiny(ready.job.tokenizer, folder / "policy", None)
    named = {"name_or_path": policy, "config": None, "tokenizer": None, "revision": None, "layers": None}
    changed: dict[str, Any] = {
        "model": recipe.model.model_copy(update={**named, "attn_implementation": None, "chat_template": None}),
        "quantization": None,
        "output_dir": str(folder / "run"),
        "score": None,
        "rewards": [_constant(spec) if spec.model else spec for spec in recipe.rewards],
        "gold": _constant(recipe.gold) if recipe.gold and recipe.gold.model else recipe.gold,
        "trainer": _settings(recipe.trainer, recipe.stage, evaluates=recipe.data.eval is not None),
    }
    if recipe.lora:
        update = {"target_modules": "all-linear", "modules_to_save": [], "r": min(recipe.lora.r, 4)}
        changed["lora"] = recipe.lora.model_copy(update=update)
    if recipe.teacher:
        teacher = save_tiny(ready.job.tokenizer, folder / "teacher", ready.head)
        update = {"name_or_path": teacher, "revision": None, "top_k": None, "attn_implementation": None}
        changed["teacher"] = recipe.teacher.model_copy(update=update)
    if recipe.critic:
        changed["critic"] = recipe.critic.model_copy(update={"name_or_path": None})
    if recipe.classify:
        changed["classify"] = recipe.classify.model_copy(update={"pooling": None})
    return replace(loaded, recipe=recipe.model_copy(update=changed))


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
    return cut | ({"seq_lengths": [len(cut["input_ids"])]} if "seq_lengths" in row else {})


def save_tiny(tokenizer: Any, folder: Path, head: "Head | None") -> str:
    """Saves a model of two narrow layers that reads the recipe's tokens."""
    from transformers import LlamaConfig

    from ..evals.models import auto_class
    from .model import head_options

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **head_options(head and replace(head, pooling=None)),
    )
    auto_class(head is not None).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _constant(spec: RewardSpec) -> RewardSpec:
    """Returns a term of the same name and weight as a reward model's, that finds all answers alike."""
    return spec.model_copy(update={"model": None, "function": f"{__name__}:alike", "name": name_of(spec)})


def alike(completions: list[Any]) -> list[float]:
    """Gives every completion the same reward."""
    return [0.0] * len(completions)
