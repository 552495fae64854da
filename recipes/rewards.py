"""From a recipe's ``rewards`` and ``gold`` to functions that score completions, the same for PPO, GRPO and RLOO.

A term is a reward model, a function or a verifier. TRL calls each as a function, which keeps reward models out of its
own path: that one scores the completion's text with the end token stripped, whereas ``reward`` runs train on answers
with it.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import chat_templates
from ..chat_templates.errors import first_line
from ..data_tools.functions import load_function
from ..evals import reward
from ..evals.errors import EvalError
from .errors import RecipeError, RunError
from .model import whole_weights
from .schema import Recipe, RewardSpec
from .verifiers import check_verifier, verifier_term

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GOLD = "gold"
Term = Callable[..., Any]  # what TRL calls: gives a number, or None, for each completion; perhaps a coroutine function


def load_terms(
    recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", args: Any, ends: Collection[int] = ()
) -> tuple[list[Term], list[float]]:
    """Loads all terms of a recipe's reward, the gold reward last, with weight 0.

    Args:
        recipe: The recipe.
        tokenizer: The policy's.
        args: The trainer's arguments, for device and batch size.
        ends: Tokens that end an answer, beside those of the tokenizer and its template.

    Returns:
        What TRL's trainers take as ``reward_funcs`` and ``reward_weights``.

    Raises:
        InputError: A model or function cannot be found or used, or two terms have one name.
    """
    terms = []
    for name, spec in _named_specs(recipe).items():
        if spec.verifier:
            terms.append(function_term(verifier_term(spec.verifier, spec.column), name))
        elif spec.function:
            terms.append(function_term(load_function(spec.function, "reward function"), name))
        else:
            model = RewardModel(str(spec.model), tokenizer, args.device, args.per_device_eval_batch_size, ends)
            terms.append(model_term(model, name))
    return terms, [spec.weight for spec in recipe.rewards] + ([0.0] if recipe.gold else [])


def check_terms(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", row: Mapping[str, Any]) -> None:
    """Imports the reward functions of a recipe, and lets its reward models read a prompt without loading weights.

    Args:
        recipe: The recipe.
        tokenizer: The policy's.
        row: One of the data's, its prompt text or messages.

    Raises:
        InputError: A function or model cannot be found or used, or two terms have one name.
        EvalError: A model cannot read the prompt.
    """
    for spec in _named_specs(recipe).values():
        if spec.verifier:
            check_verifier(spec.verifier, spec.column, row)
        elif spec.function:
            function = load_function(spec.function, "reward function")
            if not recipe.rollout_func:  # which may give it more
                _check_arguments(function, spec.function, row, ("environments",) if recipe.environment else ())
        else:
            prompt = row["prompt"]
            answer = "." if isinstance(prompt, str) else [{"role": "assistant", "content": "."}]
            model = RewardModel(str(spec.model), tokenizer, "meta", 1)
            model.reader.ids(model.completions([prompt], [answer], [[]]))


def _named_specs(recipe: Recipe) -> dict[str, RewardSpec]:
    """Returns the terms by the name that the logs call them, the gold reward last."""
    specs = [*recipe.rewards, *([recipe.gold.model_copy(update={"name": GOLD})] if recipe.gold else [])]
    names = [name_of(spec) for spec in specs]
    for name in names:
        if names.count(name) > 1:
            hint = "give each a name" if name != GOLD else "gold is the name of the gold reward"
            raise RecipeError(f"rewards: two are called {name}", hint=hint)
    return dict(zip(names, specs, strict=True))


def name_of(spec: RewardSpec) -> str:
    """Returns what the logs call a term."""
    if spec.name:
        return spec.name
    return spec.function.rpartition(":")[2] if spec.function else spec.verifier or Path(spec.model or "").name


def function_term(function: Callable[..., Any], name: str) -> Term:
    """Wraps a reward function so that whatever it does wrong is one clear error that names it and the row.

    It is called as TRL calls it: ``f(prompts=…, completions=…, completion_ids=…, **columns)``, where a column is a list
    with one value a completion. A function that does not take ``**columns`` gets those it names. None in the place of
    a number says that the term does not apply to that completion. Asynchronous functions are awaited together by TRL.
    """
    accepted = _accepted(function)
    where = f"reward {name}"

    def given(inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs if accepted is None else {key: value for key, value in inputs.items() if key in accepted}

    def failed(error: Exception, inputs: dict[str, Any], row: int | None) -> RunError:
        hint = f"row {row}: {_shown(inputs, row)}" if row is not None else None
        return RunError(f"raised {type(error).__name__}: {first_line(error)}", where=where, hint=hint)

    def checked(values: list[Any], inputs: dict[str, Any]) -> list[float | None]:
        if len(values) != len(inputs["completions"]):
            raise RunError(f"returned {len(values)} values for {len(inputs['completions'])} completions", where=where)
        for row, value in enumerate(values):
            if value is not None and not _is_number(value):
                hint = f"row {row}: {_shown(inputs, row)}"
                raise RunError(f"returned {value!r}, which is neither a finite number nor None", where=where, hint=hint)
        return [None if value is None else float(value) for value in values]

    def term(**inputs: Any) -> list[float | None]:
        try:
            values = list(function(**given(inputs)))
        except Exception as error:  # whatever a user's function may raise
            raise failed(error, inputs, _failing_row(function, given(inputs), len(inputs["completions"]))) from error
        return checked(values, inputs)

    async def awaited(**inputs: Any) -> list[float | None]:
        try:
            values = list(await function(**given(inputs)))
        except Exception as error:
            raise failed(error, inputs, None) from error
        return checked(values, inputs)

    chosen = awaited if _is_asynchronous(function) else term
    chosen.__name__ = name
    return chosen


def for_each(term: Term, name: str) -> Callable[..., list[float]]:
    """Returns a term for a caller that needs a number for every answer, now.

    Raises:
        RecipeError: The term is asynchronous.
    """
    if _is_asynchronous(term):
        raise RecipeError(f"the reward {name} is asynchronous", hint="write a plain function")

    def numbers(**inputs: Any) -> list[float]:
        values = term(**inputs)
        if None in values:
            row = values.index(None)
            raise RunError("gave None, and every answer needs a number", where=f"reward {name}", hint=f"row {row}")
        return values

    return numbers


# What TRL passes beside the columns of the rows.
_PASSED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def _check_arguments(function: Callable[..., Any], name: str, row: Mapping[str, Any], more: Collection[str]) -> None:
    """Refuses a function that asks for what it will not be given."""
    passed = [*_PASSED, *more, *sorted(row.keys() - {"prompt"})]
    accepted = _accepted(function)
    try:
        inspect.signature(function).bind(**{key: None for key in passed if accepted is None or key in accepted})
    except TypeError as error:
        hint = f"it is called by name with {', '.join(passed)}"
        raise RecipeError(f"the reward function {name} cannot be called: {error}", hint=hint) from error
    except ValueError:  # a built-in without a signature
        return


def _is_asynchronous(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _accepted(function: Callable[..., Any]) -> set[str] | None:
    """Returns the names of a function's arguments, or None if it takes any."""
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


class RewardModel:
    """A sequence-classification model with one output; what it reads of an answer is :mod:`..evals.reward`'s to say.

    Every process holds a whole copy: each scores its own rows, and a model of the ``reward`` stage is rarely the
    largest in the run. It is loaded outside DeepSpeed's ZeRO-3, which would leave each process a shard that only the
    training engine can gather.

    Args:
        name_or_path: The model, with its tokenizer beside it.
        policy_tokenizer: What the completions were sampled with.
        device: Where it runs; on ``meta`` it can read but not score.
        batch_size: Rows scored at once.
        ends: Tokens that end an answer, beside those of the policy's tokenizer and template.

    Raises:
        RecipeError: It cannot be loaded, or is not a sequence classifier with one output.
    """

    def __init__(
        self,
        name_or_path: str,
        policy_tokenizer: "PreTrainedTokenizerBase",
        device: Any,
        batch_size: int,
        ends: Collection[int] = (),
    ):
        where = f"reward model {name_or_path}"
        self.policy_ends = {*_end_ids(policy_tokenizer), *ends}
        with whole_weights():
            try:
                loaded = reward.load(name_or_path, device=str(device))
            except EvalError as error:
                raise RecipeError(error.what, where=where, hint=error.hint or reward.HINT) from error
        self.reader = reward.RewardReader(loaded, batch_size, where)

    def score(self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]]) -> list[float]:
        """Returns the model's output for each completion, in order.

        Args:
            prompts: Text or messages.
            completions: The same, decoded, without special tokens.
            completion_ids: The policy's tokens, the end token included if there is one.
        """
        return self.reader(self.completions(prompts, completions, completion_ids))

    def completions(
        self, prompts: list[Any], completions: list[Any], completion_ids: Sequence[Sequence[int]]
    ) -> list[reward.Completion]:
        """Returns the answers as the model reads them: finished are those that the policy ended."""
        return [
            reward.Completion(prompt, answer, bool(ids) and ids[-1] in self.policy_ends)
            for prompt, answer, ids in zip(prompts, completions, completion_ids, strict=True)
        ]


def _end_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Returns the ids that end an answer: eos, and the template's end of turn if that is another token."""
    ends: list[Any] = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        ends.append(tokenizer.convert_tokens_to_ids(chat_templates.from_tokenizer(tokenizer).end_of_turn or ""))
    return {end for end in ends if isinstance(end, int)}


def model_term(model: RewardModel, name: str) -> Term:
    """Wraps a reward model as the function that TRL calls."""

    def term(
        prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        return model.score(prompts, completions, completion_ids)

    term.__name__ = name
    return term
