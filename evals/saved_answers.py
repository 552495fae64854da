"""Answers of others, from a file: what lm-eval is given in the place of a model.

A row answers an item, by what was asked (the ``prompt``, or the ``question`` or ``instruction`` in it), by its own id
(``id``, ``task_id``, ...), or by its place (``doc_id``, from 0); ``task`` says of which task. Its texts are
``completion``, ``output``, ``response`` or a list of several; lm-eval's files of samples, AlpacaEval's outputs and
inspect's logs are read too. Texts end at the task's stop strings, without what was thought before, as a model's do
here.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import InputError
from ..data_tools.readers import Row
from ..data_tools.sources import read_rows
from ..data_tools.spec import SourceSpec
from .errors import EvalError
from .result_files import FAULTS, Json, damaged, read_archive, read_whole
from .thinking import answer_in

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from .spec import SamplingSpec

_IDS = ("id", "task_id", "item", "question_id", "prompt_id", "uid", "key")
_ASKED = ("prompt", "question", "instruction", "problem", "input")
_TEXTS = ("completion", "response", "generation", "completions", "responses", "resps", "prediction", "model_output")
_TEXTS += ("output", "outputs", "answer")  # which may also be the right ones: only where there is no other
_SHOWN = 5


def saved_model(path: Path) -> "LM":
    """Returns a file of answers as what lm-eval takes for a model; its ``record`` says what could not be joined.

    Raises:
        InputError: The file cannot be read.
    """
    from lm_eval.api.model import LM

    rows = list(_read(path))

    class SavedModel(LM):
        draws_itself = True
        draws = None
        longest = None
        names: Collection[str] = ()  # of the task at work, beside what the leaderboard calls it
        shared = SimpleNamespace(record=None)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            self.shared.record = None
            texts, record = join(rows, requests, path.name, self.names)
            self.shared.record = {"foreign": record}
            return texts

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise EvalError("the likelihood of options is asked of a model, and this is a file of answers")

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise EvalError("the likelihood of a text is asked of a model, and this is a file of answers")

    return SavedModel()


def _read(path: Path) -> Iterator[Row]:
    """Reads the rows of a file of answers, or the samples of a log of inspect as rows."""
    samples = None
    if path.suffix == ".eval":
        samples = read_archive(path)[1]
    elif path.suffix == ".json":
        try:
            log = json.loads(read_whole(path))
        except (ValueError, RecursionError):
            log = None  # one object a line, or damaged, as the reader of rows will say
        samples = log.get("samples") or () if isinstance(log, dict) and "eval" in log else None
    if samples is None:
        yield from read_rows(SourceSpec(path=str(path)), Path.cwd())
        return
    try:
        for number, sample in enumerate(samples):
            yield Row(f"{path.name}[{number}]", _of_inspect(sample))
    except FAULTS as error:
        raise damaged(path, error) from error


def _of_inspect(sample: Json) -> Json:
    """Returns a sample of inspect as a row: what was asked last, and what was answered."""
    asked = sample["input"]
    if isinstance(asked, list):
        asked = next(said["content"] for said in reversed(asked) if said["role"] == "user")
    output = sample.get("output") or {}
    row = {"prompt": _content(asked), "completion": _content(output.get("completion"))}
    # A number may be the item's place from 1, which inspect gives where the data have no id.
    return row | ({} if str(sample["id"]).isdigit() else {"id": sample["id"]})


def _content(value: Any) -> Any:
    """Returns the text of a message, which may stand in parts."""
    if isinstance(value, list):
        return "".join(part["text"] for part in value if part.get("type") == "text")
    return value


def join(
    rows: Sequence[Row], requests: Sequence[Any], file: str, names: Collection[str] = ()
) -> tuple[list[str], Json]:
    """Gives each request its answer.

    Args:
        rows: Of the file.
        requests: lm-eval's; several samples of an item are the same request again.
        file: Its name, for messages.
        names: What rows may call the task beside the name that the requests bear.

    Returns:
        The texts, empty where there is none, and what could not be joined, counted and named.

    Raises:
        InputError: No row answers any request, or there are fewer answers to each than samples are asked for.
    """
    joined = _Joined(requests)
    torn = [read.where for read in rows if read.problem is not None]
    first_filter = next((read.values["filter"] for read in rows if read.values.get("filter")), None)
    for number, read in enumerate(rows, start=1):
        if read.problem is None and read.values.get("task") not in (None, joined.task, *names):
            joined.rows["elsewhere"].append(str(read.values["task"]))
        # lm-eval writes a sample once for each filter, with the same text
        elif read.problem is None and read.values.get("filter") in (None, first_filter):
            joined.add(read.values, number)
    joined.check(file, len(torn))
    record = {"file": file, "rows": len(rows), "unread": joined.unread, "fields": sorted(+joined.used)}
    for kind, names in {"missing": joined.missing(), **joined.rows, "torn": torn}.items():
        record |= {kind: len(names), f"{kind}_first": list(dict.fromkeys(names))[:_SHOWN]}
    left = {name: iter(found) for name, found in joined.texts.items()}
    ended = []
    for request in requests:
        stops = request.args[1].get("until") or []
        ended.append(answer_in(next(left[id(request)], ""), "", [stops] if isinstance(stops, str) else stops).text)
    return ended, record


class _Joined:
    """The answers that rows give to requests, by request, and the rows that answer none."""

    def __init__(self, requests: Sequence[Any]):
        self.task: str = requests[0].task_name
        self.wanted = Counter(id(request) for request in requests)
        self.items = {id(request): request for request in requests}
        self.texts: dict[int, list[str]] = {name: [] for name in self.items}
        self.used: Counter[str] = Counter()  # fields, by how many rows' texts were taken from them
        self.unread = 0
        self.rows: dict[str, list[str]] = {"unknown": [], "misnamed": [], "double": [], "surplus": [], "elsewhere": []}
        self._places: dict[tuple[str, str], int | None] = {}
        for name, request in self.items.items():
            for key in set(_keys(request.doc, request.doc_id, request.args[0])):
                # what several items are asked alike tells none of them
                self._places[key] = None if key in self._places else name

    def add(self, row: Json, number: int) -> None:
        """Gives a row's texts to the request that it answers, as many as are wanted."""
        field = next((name for name in _TEXTS if row.get(name) is not None), "")
        found = list(_texts(row.get(field)))
        document = row["doc"] if isinstance(row.get("doc"), dict) else {}  # of lm-eval's samples: surer than its place
        place = None if any(_keys(document, None, None)) else row.get("doc_id")
        keys = list(_keys(document | row, place, row.get("prompt")))
        if not found or not keys:
            self.unread += 1
            return
        names = dict.fromkeys(self._places[key] for key in keys if self._places.get(key) is not None)
        name = next(iter(names), None)
        if name is None:
            self.rows["unknown"].append(_named(row, number))
            return
        if len(names) > 1:
            self.rows["misnamed"].append(_named(row, number))
        self.used[field] += 1
        texts, room = self.texts[name], self.wanted[name] - len(self.texts[name])
        if len(found) > room:
            self.rows["double" if texts else "surplus"].append(_named(row, number))
        texts += found[:room]

    def missing(self) -> list[str]:
        """Names the items that have fewer answers than are wanted."""
        short = [self.items[name] for name in self.items if len(self.texts[name]) < self.wanted[name]]
        return [_named(item.doc, item.doc_id) for item in short]

    def check(self, file: str, torn: int) -> None:
        """Refuses a file of no answers, or of fewer to each item than samples are asked for."""
        if not any(self.texts.values()):
            hint = "rows need an `id`, a `prompt` or a `doc_id`, and a `completion`"
            unknown = f"{len(self.rows['unknown'])} are to no item of the task"
            what = f"no row of {file} answers an item: {self.unread} hold no answer, {unknown}"
            what += f", {torn} could not be read" if torn else ""
            if others := self.rows["elsewhere"]:
                what += f", {len(others)} are of other tasks: {', '.join([*dict.fromkeys(others)][:_SHOWN])}"
                hint = f"the task is {self.task}: write that as their `task`, or drop the column"
            raise InputError(what, hint=hint)
        most = max(len(found) for found in self.texts.values())
        if most < (samples := max(self.wanted.values())):
            what = f"{file} holds at most {most} answers to an item, and {samples} samples of each are asked for"
            raise InputError(what, hint=f"say `samples: {most}` in the suite's `sampling:`, or leave that out")


def notes_of(record: Mapping[str, Any], setting: "SamplingSpec | None") -> tuple[str, ...]:
    """Words what could not be joined, and that a file's author drew its texts, not a suite's named setting."""
    kinds = {
        "missing": "items have no answer there and count as empty ones",
        "unknown": "rows answer no item",
        "misnamed": "rows bear the id or place of another item than was asked; what was asked counts",
        "double": "rows answer an item that has its answers already; the first stand",
        "surplus": "rows hold more answers to an item than are asked for; the first of each count",
        "torn": "rows could not be read",
        "elsewhere": "rows are of other tasks",
    }
    told = [f"answers of others, the {' and '.join(record['fields'])} of each row of {record['file']}"]
    for kind, what in kinds.items():
        if record[kind]:
            told.append(f"{record[kind]} {what}: {', '.join(record[f'{kind}_first'])}")
    if setting is not None:
        told.append(f"drawn as their author drew them, of which the setting {setting.name} says nothing")
    return (*told, *([f"{record['unread']} rows hold no answer"] if record["unread"] else []))


def _keys(values: Mapping[str, Any], place: Any, prompt: Any) -> Iterator[tuple[str, str]]:
    """Yields what an item, or a row that answers one, is known by: the surest first.

    A row's `id` may count the rows of its file, which is the id of another item if those are numbers too.
    """
    for asked in (prompt, *(values.get(name) for name in _ASKED)):
        if isinstance(asked, str) and asked.strip():
            yield "prompt", asked.strip()
    for name in _IDS:
        if isinstance(values.get(name), str | int):
            yield "id", str(values[name])
    if isinstance(place, int):
        yield "place", str(place)


def _texts(value: Any) -> Iterator[str]:
    """Yields the answers of a row: a text, or a list of them."""
    values = [value] if isinstance(value, str) else value
    for text in values if isinstance(values, list) else ():
        for one in text if isinstance(text, list) else [text]:  # lm-eval's samples: a list for each request
            if isinstance(one, str):
                yield one


def _named(values: Mapping[str, Any], place: int) -> str:
    return next((str(values[name]) for name in _IDS if isinstance(values.get(name), str | int)), f"#{place}")
