"""The data tools that a step of a pipeline, or ``posttrain data``, may run: functions of an output folder."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import did_you_mean
from .library.quickstart.world import generate

if TYPE_CHECKING:
    from ..data_tools.spec import SourceSpec


def tokenizer(
    output_dir: Path,
    *,
    sources: Sequence[str | dict[str, Any]],
    vocab_size: int,
    split_digits: bool = True,
    min_frequency: int = 2,
) -> None:
    """Trains a byte-level BPE tokenizer.

    Args:
        output_dir: Where it is saved.
        sources: Paths, or mappings with the keys of a source in ``data.train``.
        vocab_size: Tokens at most, the special ones included.
        split_digits: Whether every digit is a token of its own.
        min_frequency: How often a pair must occur to become a token.

    Raises:
        DataError: A source cannot be read.
        InputError: The vocabulary is too small.
    """
    from ..data_tools.tokenizer import TokenizerSpec, train_on

    specs = [_source(source, "sources") for source in sources]
    wanted = TokenizerSpec(vocab_size, split_digits=split_digits, min_frequency=min_frequency)
    train_on(specs, wanted, output_dir, base_dir=Path())


def answers(
    output_dir: Path,
    *,
    prompts: str | dict[str, Any],
    model: str,
    base_url: str | None = None,
    api_key_env: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    concurrency: int = 8,
    retries: int = 4,
    max_bad_share: float = 0.02,
) -> None:
    """Lets a model answer prompts and writes the conversations to ``answers.jsonl``, for the stage sft.

    Args:
        output_dir: Where the answers are collected; a second call goes on where a killed one was.
        prompts: A path, or a mapping with the keys of a source in ``data.train``: prompts, or conversations whose last
            answer is left out.
        model: A folder or Hub id, run in this process; with ``base_url`` the name that the endpoint knows it by.
        base_url: An OpenAI-compatible endpoint.
        api_key_env: The environment variable that holds the endpoint's key.
        max_new_tokens: Tokens of an answer at most; answers that it cuts are dropped and counted.
        temperature: 0 is greedy.
        top_p: The mass of the likeliest tokens that are drawn from.
        samples: Answers to each prompt.
        seed: Of the draws.
        batch_size: Prompts at a time in this process.
        concurrency: Requests at a time.
        retries: How often a failed request is repeated.
        max_bad_share: The largest share of the prompts that may stay without a usable answer.

    Raises:
        PosttrainError: The prompts cannot be read, the model cannot be asked, or too few answers can be used.
    """
    from ..data_tools import ask
    from ..evals.checkpoints import model_hash
    from ..evals.models import load_language_model
    from ..evals.runs import locate

    answerer = ask.Answerer(
        model, base_url, api_key_env, max_new_tokens, temperature, top_p, seed, batch_size, concurrency, retries
    )
    source = _source(prompts, "prompts")
    report = ask.answer(
        source,
        output_dir,
        answerer,
        base_dir=Path(),
        loader=lambda name: load_language_model(str(locate(name))),
        identify=lambda name: model_hash(locate(name)),
        samples=samples,
        max_bad_share=max_bad_share,
    )
    dropped = f", dropped: {report.reasons()}" if report.dropped else ""
    print(f"{output_dir / ask.ANSWERS}: {report.kept} answers{dropped}")


def _source(source: str | dict[str, Any], key: str) -> "SourceSpec":
    """Reads a path, or the keys of a source.

    Raises:
        DataError: They make no source.
    """
    from pydantic import ValidationError

    from ..data_tools.errors import DataError
    from ..data_tools.spec import SourceSpec

    try:
        return SourceSpec.model_validate(source if isinstance(source, dict) else {"path": source})
    except ValidationError as error:
        raise DataError(f"a source is not right: {error.errors()[0]['msg']}", where=key) from error


def best_of_n(
    output_dir: Path,
    *,
    policy: str,
    reward: str,
    prompts: str | dict[str, Any],
    gold: str | None = None,
    n: int = 64,
    limit: int | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    seed: int = 0,
    batch_size: int = 64,
) -> None:
    """Draws n answers to held-out prompts and works out what the best of 1, 2, 4, …, n is worth by two rewards.

    Args:
        output_dir: Where ``best_of_n.json`` goes, which the report of the same pipeline draws.
        policy: A model's folder or ``@step``.
        reward: What chooses: a reward model's folder or ``@step``, or a function ``module:name`` or ``file.py:name``.
        prompts: A path, or a mapping with the keys of a source in ``data.train``.
        gold: What the choice is checked by, likewise.
        n: Answers to each prompt.
        limit: Take the first so many prompts only.
        temperature: Of sampling.
        max_new_tokens: Tokens of an answer, at most.
        seed: Of sampling.
        batch_size: Answers drawn at a time.

    Raises:
        DataError: The prompts cannot be read.
        RecipeError: A reward cannot be found or used.
        EvalError: The policy cannot be loaded, or is no language model.
    """
    from types import SimpleNamespace

    from ..data_tools.generate import ends_of
    from ..evals import best_of_n as best
    from ..evals.checkpoints import model_hash
    from ..evals.models import load_model
    from ..evals.runs import locate
    from .rewards import load_terms, name_of
    from .schema import RewardSpec

    source = _source(prompts, "prompts")
    first, second = (
        RewardSpec.model_validate({"function" if ":" in name else "model": name}) if name else None
        for name in (reward, gold)
    )
    assert first is not None, "the tool's arguments have been checked"
    folder = locate(policy)
    loaded = load_model(str(folder))
    recipe: Any = SimpleNamespace(rewards=[first], gold=second)
    args = SimpleNamespace(device=loaded.model.device, per_device_eval_batch_size=batch_size)
    terms, _ = load_terms(recipe, loaded.tokenizer, args, ends_of(loaded.model, loaded.tokenizer))
    known = {"policy": Path(policy).name if Path(policy).is_dir() else policy, "policy_model": model_hash(folder)}
    best.run(
        output_dir,
        loaded,
        best.read_prompts(source, loaded, limit),
        best.Sampling(n, temperature, max_new_tokens, seed, batch_size),
        reward=terms[0],
        gold=terms[1] if second else None,
        names={**known, "reward": name_of(first), "gold": name_of(second) if second else None},
        say=lambda line: print(line, flush=True),
    )


TOOLS: Mapping[str, Callable[..., Any]] = {
    "answers": answers,
    "best_of_n": best_of_n,
    "tokenizer": tokenizer,
    "world": generate,
}


def _type_problem(value: Any, annotation: Any) -> str | None:
    """Says what is wrong with the type of an argument, by the annotation of the tool's parameter."""
    from pydantic import TypeAdapter, ValidationError

    if isinstance(value, str) and value.startswith("@"):
        return None
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        return error.errors()[0]["msg"][0].lower() + error.errors()[0]["msg"][1:]
    return None


def problems(name: str, args: Mapping[str, Any]) -> list[tuple[str | None, str, str | None]]:
    """Compares a step's arguments with the tool's own parameters.

    Returns:
        ``(argument or None, what is wrong, hint)`` for each problem.
    """
    if name not in TOOLS:
        return [(None, f"no tool '{name}'", did_you_mean(name, TOOLS) or f"known: {', '.join(TOOLS)}")]
    parameters = {key: p for key, p in inspect.signature(TOOLS[name]).parameters.items() if key != "output_dir"}
    found: list[tuple[str | None, str, str | None]] = []
    for key in args:
        if key not in parameters:
            found.append((key, "unknown argument", did_you_mean(key, parameters) or f"known: {', '.join(parameters)}"))
    for key, value in args.items():
        problem = key in parameters and _type_problem(value, parameters[key].annotation)
        if problem:
            found.append((key, problem, None))
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in args:
            found.append((None, f"the tool {name} needs the argument {key}", None))
    return found
