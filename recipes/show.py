"""``posttrain show``: rows as the trainer will see them, the tokens that are learnt from in colour."""

from typing import TYPE_CHECKING, Any

from .errors import RecipeError
from .load import Loaded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from .job import Job

LOSS_STYLE = "bold green"
UNWANTED_STYLE = "bold red"
REST_STYLE = "dim"


def show_rows(loaded: Loaded, *, split: str, rows: int) -> None:
    """Prints the first rows of a split.

    On a terminal, tokens with loss and answers to prefer are bold green, answers to avoid bold red and the rest dim;
    elsewhere what is coloured stands between ⟦ and ⟧.

    Raises:
        RecipeError: The recipe has no such split.
    """
    from rich.console import Console

    from .job import open_job
    from .rows import prepare_rows

    if split not in ("train", "eval"):
        raise RecipeError(f"there is no split '{split}'", hint="train or eval")
    job = open_job(loaded)
    prepared = prepare_rows(job, split)
    if prepared is None:
        raise RecipeError(f"the recipe has no data.{split}", where=str(loaded.path))
    console = Console(highlight=False, soft_wrap=True)
    for line in prepared.report.notes:
        console.print(line, markup=False)
    shown: Any = prepared.dataset.select(range(min(rows, len(prepared.dataset))))
    for number, row in enumerate(shown):
        if number:
            console.print()
        if loaded.recipe.objective:
            row["labels"] = _hidden(job, number, row["input_ids"])
        _show_row(console, job, number, row)


def _hidden(job: "Job", number: int, ids: list[int]) -> list[int]:
    """Returns the labels of the tokens that the first epoch hides."""
    import numpy as np

    from .stages.masked import masking_of

    seed = job.option("data_seed")
    masking = masking_of(job, job.option("seed") if seed is None else seed)
    return masking(np.array(ids), number, 0)[1].tolist()


def _show_row(console: "Console", job: "Job", number: int, row: dict[str, Any]) -> None:
    """Prints one row of any kind."""
    colour = console.is_terminal
    if "prompt_ids" in row:
        _show_answers(console, job.tokenizer, number, row)
    elif "prompt" in row:
        console.print(f"row {number}: {_listed(row, 'prompt') or 'a prompt'}", style="bold")
        console.print(_prompt_text(job, row["prompt"]), style=REST_STYLE, markup=False)
    elif "labels" not in row:
        console.print(f"row {number}: {len(row['input_ids'])} tokens, {_listed(row, 'input_ids')}", style="bold")
        console.print(_piece(job.tokenizer, row["input_ids"], LOSS_STYLE, colour=colour))
    else:
        carried = sum(label != -100 for label in row["labels"])
        console.print(f"row {number}: {len(row['input_ids'])} tokens, {carried} carry loss", style="bold")
        for sequence in _sequences(row):
            console.print(_render(job.tokenizer, *sequence, colour=colour))


def _show_answers(console: "Console", tokenizer: Any, number: int, row: dict[str, Any]) -> None:
    """Prints a prompt and the answers to it."""
    answers = {name: ids for name, ids in row.items() if name.endswith("_ids")}
    sizes = ", ".join(f"{name.removesuffix('_ids')} {len(ids)}" for name, ids in answers.items())
    rest = _listed(row, *answers)
    console.print(f"row {number}: tokens: {sizes}{f'; {rest}' if rest else ''}", style="bold")
    console.print(_piece(tokenizer, answers.pop("prompt_ids"), REST_STYLE, colour=True))
    for name, ids in answers.items():
        unwanted = name == "rejected_ids" or row.get("label") is False
        style = UNWANTED_STYLE if unwanted else LOSS_STYLE
        console.print(f"{name.removesuffix('_ids')}:", style="bold", end=" ")
        console.print(_piece(tokenizer, ids, style, colour=console.is_terminal))


def _listed(row: dict[str, Any], *but: str) -> str:
    """Lists the columns of a row that are not tokens."""
    return ", ".join(f"{name} {value!r}" for name, value in row.items() if name not in but and value is not None)


def _prompt_text(job: "Job", prompt: Any) -> str:
    """Returns a prompt as a model gets it to go on from."""
    from .. import chat_templates

    if isinstance(prompt, str) or job.template is None:
        return str(prompt)
    return chat_templates.render(job.template, prompt, tokenizer=job.tokenizer, add_generation_prompt=True).text


def _piece(tokenizer: Any, ids: list[int], style: str, *, colour: bool) -> "Text":
    """Decodes tokens of one style."""
    from rich.text import Text

    piece = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return Text(piece if colour else f"⟦{piece}⟧", style)


def _sequences(row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Splits a packed row into the documents that it holds."""
    found, start = [], 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        found.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
        start += length
    return found


def _render(tokenizer: Any, ids: list[int], labels: list[int], *, colour: bool) -> "Text":
    """Decodes runs of tokens with and without loss, each in its style."""
    from rich.text import Text

    text = Text()
    start = 0
    for end in range(1, len(ids) + 1):
        carries = labels[start] != -100
        if end == len(ids) or (labels[end] != -100) != carries:
            style = LOSS_STYLE if carries else REST_STYLE
            text.append(_piece(tokenizer, ids[start:end], style, colour=colour or not carries))
            start = end
    return text
