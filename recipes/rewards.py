"""From a recipe's ``rewards`` and ``gold`` to functions that score completions, the same for PPO, GRPO and RLOO.

A term is a reward model or a function. TRL calls either as a function, which keeps reward models out of its own path:
that one scores the completion's text with the end token stripped, whereas ``reward`` runs train on token ids that
end with it. A model that shares the policy's tokenizer and template is given the very ids that were sampled.
"""

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import chat_templates
from ..chat_templates.errors import first_line
from .errors import RecipeError, RunError
from .schema import Recipe, RewardSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GOLD = "gold"
Term = Callable[..., list[float]]


def load_terms(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", args: Any) -> tuple[list[Term], list[float]]:
    """Loads all terms of a recipe's reward, the gold reward last, with weight 0.

    Args:
        recipe: The recipe.
        tokenizer: The policy's.
        args: The trainer's arguments, for device and batch size.

    Returns:
        What TRL's trainers take as ``reward_funcs`` and ``reward_weights``.

    Raises:
        RecipeError: A model or function cannot be found or used, or two terms have one name.
    """
    specs = [*recipe.rewards, *([recipe.gold.model_copy(update={"name": GOLD})] if recipe.gold else [])]
    names = [name_of(spec) for spec in specs]
    for name in names:
        if names.count(name) > 1:
            hint = "give each a name" if name != GOLD else "gold is the name of the gold reward"
            raise RecipeError(f"two rewards are called {name}", where="rewards", hint=hint)
    terms = [_load_term(spec, name, tokenizer, args) for spec, name in zip(specs, names, strict=True)]
    return terms, [spec.weight for spec in recipe.rewards] + ([0.0] if recipe.gold else [])


def name_of(spec: RewardSpec) -> str:
    """Returns what the logs call a term."""
    if spec.name:
        return spec.name
    return spec.function.rpartition(":")[2] if spec.function else Path(spec.model or "").name


def _load_term(spec: RewardSpec, name: str, tokenizer: "PreTrainedTokenizerBase", args: Any) -> Term:
    if spec.function:
        return function_term(load_function(spec.function), name)
    assert spec.model is not None, "a term is a model or a function"
    return model_term(RewardModel(spec.model, tokenizer, args.device, args.per_device_eval_batch_size), name)


def load_function(reference: str) -> Callable[..., Any]:
    """Imports ``package.module:name`` or ``file.py:name``.

    Raises:
        RecipeError: There is no such module, file or function, or it fails when imported.
    """
    source, _, name = reference.rpartition(":")
    where = f"reward function {reference}"
    try:
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"reward_{Path(source).stem}", source)
            assert spec is not None, "the path ends in .py"
            assert spec.loader is not None, "a .py file has a loader"
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except Exception as error:  # whatever a user's module may raise
        kind = type(error).__name__
        raise RecipeError(f"cannot be imported: {kind}: {first_line(error)}", where=where) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"{source} has no function {name}", where=where)
    return function


def function_term(function: Callable[..., Any], name: str) -> Term:
    """Wraps a reward function so that whatever it does wrong is one clear error that names it and the row.

    It is called as TRL calls it: ``f(prompts=…, completions=…, completion_ids=…, **columns)``, where a column is a list
    with one value a completion. A function that does not take ``**columns`` gets those it names.
    """
    accepted = _accepted(function)
    where = f"reward {name}"

    def term(**inputs: Any) -> list[float]:
        completions = inputs["completions"]
        given = inputs if accepted is None else {key: value for key, value in inputs.items() if key in accepted}
        try:
            values = list(function(**given))
        except Exception as error:  # whatever a user's function may raise
            kind = type(error).__name__
            row = _failing_row(function, given, len(completions))
            hint = f"row {row}: {_shown(inputs, row)}" if row is not None else None
            raise RunError(f"raised {kind}: {first_line(error)}", where=where, hint=hint) from error
        if len(values) != len(completions):
            raise RunError(f"returned {len(values)} values for {len(completions)} completions", where=where)
        for row, value in enumerate(values):
            if not _is_number(value):
                raise RunError(
                    f"returned {value!r}, which is not a finite number",
                    where=where,
                    hint=f"row {row}: {_shown(inputs, row)}",
                )
        return [float(value) for value in values]

    term.__name__ = name
    return term


def _accepted(function: Callable[..., Any]) -> set[str] | None:
    """Returns the names of a function's arguments, or None if it takes any.

    Raises:
        RecipeError: It is asynchronous.
    """
    if inspect.iscoroutinefunction(function):
        raise RecipeError(f"the reward function {function.__name__} is asynchronous", hint="write a plain function")
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a built-in without a signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return set(parameters)


def _failing_row(function: Callable[..., Any], inputs: dict[str, Any], rows: int) -> int | None:
    """Finds the first row that fails by itself; None if none does."""
    for row in range(rows):
        one = {
            key: value[row : row + 1] if isinstance(value, list) and len(value) == rows else value
            for key, value in inputs.items()
        }
        try:
            list(function(**one))
        except Exception:
            return row
    return None


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes) and math.isfinite(value)
    except TypeError:
        return False


def _shown(inputs: dict[str, Any], row: int) -> str:
    """Returns the beginning of a row's prompt and completion, for an error."""
    parts = []
    for key in ("prompts", "completions"):
        text = repr(inputs[key][row])
        parts.append(f"{key[:-1]} {text[:120]}{'…' if len(text) > 120 else ''}")
    return ", ".join(parts)


def model_term(model: "RewardModel", name: str) -> Term:
    """Wraps a reward model as the function that TRL calls."""

    def term(
        prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        return model.score(prompts, completions, completion_ids)

    term.__name__ = name
    return term


class RewardModel:
    """A sequence-classification model with one output, and how its input is made from the policy's samples.

    Every process holds a whole copy: scores are needed for different rows on each, and a model of the ``reward`` stage
    is rarely the largest in the run. It is loaded outside DeepSpeed's ZeRO-3, which would leave each process a shard
    that only the training engine can gather.

    Args:
        name_or_path: The model, with its tokenizer beside it.
        policy_tokenizer: What the completions were sampled with.
        device: Where it runs.
        batch_size: Rows scored at once.

    Raises:
        RecipeError: It cannot be loaded, or is not a sequence classifier with one output.
    """

    def __init__(self, name_or_path: str, policy_tokenizer: "PreTrainedTokenizerBase", device: Any, batch_size: int):
        self.name = name_or_path
        self.policy_tokenizer = policy_tokenizer
        self.model, self.tokenizer = load_reward_model(name_or_path)
        self.model.to(device)
        self.pad_id = self.model.config.get_text_config().pad_token_id
        self.batch_size = batch_size if self.pad_id is not None else 1  # without a pad token it cannot find the end
        self.same_ids = _same_ids(self.tokenizer, policy_tokenizer)
        self.ends = _end_ids(policy_tokenizer)

    def score(self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]]) -> list[float]:
        """Returns the model's output for each completion, in order.

        Args:
            prompts: Text or messages.
            completions: The same, decoded, without special tokens.
            completion_ids: The policy's tokens, the end token included if there is one.
        """
        import torch

        rows = [self.encode(*row) for row in zip(prompts, completions, completion_ids, strict=True)]
        scores: list[float] = []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            width = max(map(len, batch))
            fill = self.pad_id if self.pad_id is not None else 0
            ids = torch.tensor([row + [fill] * (width - len(row)) for row in batch], device=self.model.device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=self.model.device)
            with torch.inference_mode():
                scores += self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return scores

    def encode(self, prompt: Any, completion: Any, completion_ids: Sequence[int]) -> list[int]:
        """Returns the tokens that the model reads: prompt, answer, and the end of the turn if the policy wrote it."""
        if self.same_ids:
            return [*prompt_ids(self.tokenizer, prompt), *completion_ids]
        ended = bool(completion_ids) and completion_ids[-1] in self.ends
        return self._render(prompt, completion, ended)

    def _render(self, prompt: Any, completion: Any, ended: bool) -> list[int]:
        """Renders a row anew with this model's own tokenizer and template."""
        if isinstance(prompt, str):
            end = [self.tokenizer.eos_token_id] if ended and self.tokenizer.eos_token_id is not None else []
            return [*prompt_ids(self.tokenizer, prompt), *_ids(self.tokenizer, completion), *end]
        start = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        whole = self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        assert isinstance(start, str), "tokenize=False gives text"
        assert isinstance(whole, str), "tokenize=False gives text"
        content = completion[-1]["content"]
        at = whole.rfind(content) if content else len(start)
        if not ended and at >= 0:  # a completion that was cut has no end of turn
            whole = whole[: at + len(content)]
        return _ids(self.tokenizer, whole.rstrip("\n") if ended else whole)


def load_reward_model(name_or_path: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a reward model, frozen and in evaluation mode, with its tokenizer.

    Raises:
        RecipeError: It cannot be loaded, or is not a sequence classifier with one output.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where = f"reward model {name_or_path}"
    hint = "name a model that a recipe with stage: reward has trained"
    with outside_zero3():
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name_or_path, dtype="auto", output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        except (OSError, ValueError, RuntimeError) as error:
            raise RecipeError(f"cannot be loaded: {first_line(error)}", where=where, hint=hint) from error
    if info["missing_keys"]:
        raise RecipeError("has no trained head: it is not a sequence classifier", where=where, hint=hint)
    if model.config.num_labels != 1:
        raise RecipeError(f"has {model.config.num_labels} outputs instead of one", where=where, hint=hint)
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = tokenizer.pad_token_id
    return model.eval().requires_grad_(False), tokenizer


@contextmanager
def outside_zero3() -> Iterator[None]:
    """Loads models whole on every process, also under DeepSpeed's ZeRO-3."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def _same_ids(mine: "PreTrainedTokenizerBase", policy: "PreTrainedTokenizerBase") -> bool:
    """Says whether two tokenizers give the same ids to the same text and render the same conversations."""
    return mine.get_vocab() == policy.get_vocab() and mine.chat_template == policy.chat_template  # type: ignore[operator]


def _end_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Returns the ids that end the policy's answer: eos, and the template's end of turn if that is another token."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        ends.add(tokenizer.convert_tokens_to_ids(chat_templates.from_tokenizer(tokenizer).end_of_turn or ""))
    return {end for end in ends if isinstance(end, int)}


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompt: Any) -> list[int]:
    """Returns a prompt's tokens, as TRL gives them to the policy."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])  # type: ignore[arg-type]
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False))  # type: ignore[arg-type]


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
