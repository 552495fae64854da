"""Answers of others, from a file: what lm-eval is given in the place of a model.

A row answers an item, by its own id (``id``, ``task_id``, ...), by what was asked (``prompt``), or by its place
(``doc_id``, from 0); ``task`` says of which task. Its texts are ``completion``, ``output``, ``response`` or a list of
several; the files of samples that lm-eval itself writes are read too. Texts end at the task's stop strings, without
what was thought before, as a model's do here.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import InputError
from ..data_tools.sources import read_rows
from ..data_tools.spec import SourceSpec
from .errors import EvalError
from .thinking import answer_in

if TYPE_CHECKING:
    from lm_eval.api.model import LM

_IDS = ("id", "task_id", "item", "question_id", "prompt_id", "uid", "key")
_TEXTS = ("completion", "output", "response", "generation", "answer", "completions", "outputs", "responses", "resps")
_SHOWN = 5


def saved_model(path: Path) -> "LM":
    """Returns a file of answers as what lm-eval takes for a model; its ``record`` says what could not be joined.

    Raises:
        InputError: The file cannot be read.
    """
    from lm_eval.api.model import LM

    rows = [row.values if row.problem is None else {} for row in read_rows(SourceSpec(path=str(path)), Path.cwd())]

    class SavedModel(LM):
        saved = True
        draws = None
        shared = SimpleNamespace(record=None)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            self.shared.record = None
            texts, record = join(rows, requests, path.name)
            self.shared.record = {"foreign": record}
            return texts

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise EvalError("the likelihood of options is asked of a model, and this is a file of answers")

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise EvalError("the likelihood of a text is asked of a model, and this is a file of answers")

    return SavedModel()


def join(rows: Sequence[Mapping[str, Any]], requests: Sequence[Any], file: str) -> tuple[list[str], dict[str, Any]]:
    """Gives each request its answer.

    Args:
        rows: Of the file.
        requests: lm-eval's; several samples of an item are the same request again.
        file: Its name, for messages.

    Returns:
        The texts, empty where there is none, and what could not be joined, counted and named.

    Raises:
        InputError: No row answers any request.
    """
    task = requests[0].task_name
    wanted = Counter(id(request) for request in requests)
    items = {id(request): request for request in requests}
    places = {
        key: name for name, request in items.items() for key in _keys(request.doc, request.doc_id, request.args[0])
    }
    texts: dict[int, list[str]] = {name: [] for name in items}
    unknown: list[str] = []
    double: list[str] = []
    unread = 0
    for number, row in enumerate(rows, start=1):
        if row.get("task") not in (None, task):
            continue
        found = list(_texts(row))
        keys = list(_keys(row, row.get("doc_id"), row.get("prompt")))
        if not found or not keys:
            unread += 1
            continue
        name = next((places[key] for key in keys if key in places), None)
        if name is None:
            unknown.append(_named(row, number))
        elif len(texts[name]) + len(found) > wanted[name]:
            double.append(_named(row, number))
            texts[name] += found[: wanted[name] - len(texts[name])]
        else:
            texts[name] += found
    missing = [_named(items[name].doc, items[name].doc_id) for name in items if len(texts[name]) < wanted[name]]
    if len(missing) == len(items):
        hint = "rows need an `id`, a `prompt` or a `doc_id`, and a `completion`"
        what = f"no row of {file} answers an item: {unread} hold no answer, {len(unknown)} are to no item of the task"
        raise InputError(what, hint=hint)
    record = {"file": file, "rows": len(rows), "unread": unread}
    for kind, names in (("missing", missing), ("unknown", unknown), ("double", double)):
        record |= {kind: len(names), f"{kind}_first": names[:_SHOWN]}
    left = {name: iter(found) for name, found in texts.items()}
    ended = []
    for request in requests:
        stops = request.args[1].get("until") or []
        ended.append(answer_in(next(left[id(request)], ""), "", [stops] if isinstance(stops, str) else stops).text)
    return ended, record


def notes_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Words what could not be joined."""
    kinds = {
        "missing": "items have no answer there and count as empty ones",
        "unknown": "rows answer no item",
        "double": "rows answer an item that has its answers already; the first stand",
    }
    told = [f"answers of others, read from {record['file']}"]
    for kind, what in kinds.items():
        if record[kind]:
            told.append(f"{record[kind]} {what}: {', '.join(record[f'{kind}_first'])}")
    return (*told, *([f"{record['unread']} rows hold no answer"] if record["unread"] else []))


def _keys(values: Mapping[str, Any], place: Any, prompt: Any) -> Iterator[tuple[str, str]]:
    """Yields what an item, or a row that answers one, is known by: the surest first."""
    for name in _IDS:
        if isinstance(values.get(name), str | int):
            yield "id", str(values[name])
    if isinstance(prompt, str) and prompt.strip():
        yield "prompt", prompt.strip()
    if isinstance(values.get("prompt"), str) and values["prompt"] != prompt:
        yield "prompt", values["prompt"].strip()
    if isinstance(place, int):
        yield "place", str(place)


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    """Yields the answers of a row."""
    value = next((row[name] for name in _TEXTS if row.get(name) is not None), [])
    values = [value] if isinstance(value, str) else value
    for text in values if isinstance(values, list) else ():
        for one in text if isinstance(text, list) else [text]:  # lm-eval's samples: a list for each request
            if isinstance(one, str):
                yield one


def _named(values: Mapping[str, Any], place: int) -> str:
    return next((str(values[name]) for name in _IDS if isinstance(values.get(name), str | int)), f"#{place}")
