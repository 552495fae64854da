"""Which items of scored tasks the training data of a run holds, its ancestors' data included.

The data is read again, from where the recipes of the run and of the runs that it came from say; what is not there any
more, has changed since, or was never known (a model from elsewhere) is said as such, and what it holds is unknown but
for what was found in it before. An item counts as touched by PaLM's rule, whose paper gives scores on the items that it
leaves (Chowdhery et al. 2022, arXiv:2204.02311, section 8): 70% of its 8-grams are in the data. Rows that training
dropped or did not come to count, and so does the whole data of a run at each of its checkpoints: touched means at most
that a model has seen an item.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..chat_templates.errors import PosttrainError, first_line
from ..data_tools.errors import DataError
from ..data_tools.files import append_line, hash_json, locked, read_jsonl_log
from ..data_tools.ngrams import split_words
from ..data_tools.overlap import RULES, Item, Overlap, text_of
from ..data_tools.progress import Say
from ..data_tools.sources import Row, content_hash, is_hub, local_files, read_rows
from ..data_tools.spec import SourceSpec
from .records import CONTAMINATION, LOCKS, ScoreStore
from .runs import lineage
from .task import Task

RULE = RULES["palm"]
VERSION = 5  # raise it whenever the same data would touch other items
MOST_BYTES = 1_000_000_000
"""Training data that is read without being asked to: about a minute's work."""
_BATCH = 2048
_SHOWN = 300  # characters of an item that a line quotes


@dataclass(frozen=True)
class Touched:
    """An item that training data holds.

    Attributes:
        id: The item's, as the samples of its scores have it.
        question: Its beginning.
        run: Name of the run whose data holds it, which may be an ancestor.
        row: Where the row is that holds most of it.
        words: The longest run of its words there.
    """

    id: str
    question: str
    run: str
    row: str
    words: str


@dataclass(frozen=True)
class TrainingSource:
    """Rows that a run was trained on.

    Attributes:
        run: Name of the run that read them.
        source: Where they are; the path is absolute.
        identity: Tells these rows, as they were for training, from all others, wherever they lie now.
        problem: Why they cannot be read now, a clause; None if they can.
    """

    run: str
    source: SourceSpec
    identity: str
    problem: str | None = None


@dataclass(frozen=True)
class TrainingData:
    """What a run and its ancestors were trained on.

    Attributes:
        sources: What is known of it.
        unseen: What is not known, a clause each.
    """

    sources: tuple[TrainingSource, ...]
    unseen: tuple[str, ...]

    @property
    def readable(self) -> list[TrainingSource]:
        """Returns the sources that can be read now."""
        return [source for source in self.sources if source.problem is None]


def training_data(run_dir: Path, *, most_bytes: int | None = MOST_BYTES) -> TrainingData:
    """Finds the training data of a run and of those that it came from, and proves that it is what they were trained on.

    Args:
        run_dir: The run folder.
        most_bytes: What all files together may weigh to be read; None for no bound.
    """
    found: list[tuple[TrainingSource, str | None]] = []  # with the hash of what was read
    unseen: list[str] = []
    parent: dict[str, Any] | None = None
    for folder, record in lineage(run_dir):
        name, parent = str(record.get("name") or folder.name), record.get("parent")
        given = ((record.get("recipe") or {}).get("data") or {}).get("train")
        trained = (record.get("data") or {}).get("train")
        if not given or not trained:
            unseen.append(f"what {name} was trained on is unknown")
            continue
        given = given if isinstance(given, list) else [given]
        contents = trained.get("contents") or []
        if len(contents) != len(given):  # of a version that kept none: each source counts, and none is proved
            contents = [None] * len(given)
        for values, content in zip(given, contents, strict=True):
            told = {key: value for key, value in values.items() if key != "weight"}
            try:
                place = {"path": _place(values["path"], record, folder), "name": values["path"]}
                source = SourceSpec.model_validate(values | place)
            except ValidationError as error:  # the recipe of a version with other keys
                unseen.append(f"what {name} was trained on cannot be read: {first_line(error)}")
                continue
            found.append((TrainingSource(name, source, hash_json([name, told, content])), content))
    if parent:  # no run that could be followed further
        unseen.append(f"what {parent.get('name')} was trained on is unknown")
    weight = sum(_weight(one.source) for one, _ in found)
    if most_bytes is not None and weight > most_bytes:
        problem = f"{weight / 1e9:.1f} GB of training data are not looked through without `contamination: always`"
        return TrainingData(tuple(replace(one, problem=problem) for one, _ in found), tuple(unseen))
    sources = []
    for one, content in found:
        title, problem = one.source.title, None
        try:
            now = content_hash(one.source, Path())
        except DataError as error:
            problem = f"{title} of {one.run} cannot be read: {first_line(error)}"
        else:
            if content is None:
                unseen.append(f"that {title} is what {one.run} was trained on cannot be proved")
            elif content != now:
                problem = f"{title} has changed since {one.run} was trained on it"
        sources.append(replace(one, problem=problem))
    return TrainingData(tuple(sources), tuple(unseen))


def _weight(source: SourceSpec) -> int:
    """Returns the bytes of a source's files, as far as there are any."""
    try:
        return 0 if is_hub(source, Path()) else sum(file.stat().st_size for file in local_files(source, Path()))
    except (DataError, OSError):
        return 0  # what is not there is said where it is to be read


def _place(path: str, record: dict[str, Any], run_dir: Path) -> str:
    """Returns where the data of a recipe lies: with a step of its pipeline, beside the recipe, or here."""
    if path.startswith("@"):
        name, _, rest = path[1:].partition("/")
        folder = Path(str((record.get("references") or {}).get(name) or name))
        beside = run_dir.absolute().parent / folder.name  # runs that were moved together
        return str((folder if folder.is_dir() else beside).absolute() / rest)
    base = Path(record.get("recipe_path") or ".").parent
    source = SourceSpec(path=path)
    if is_hub(source, base) and is_hub(source, Path()):
        return path
    beside = base / Path(path).expanduser()
    return str(Path(path).absolute() if Path(path).exists() and not beside.exists() else beside)


def find_touched(
    store: Path,
    tasks: Sequence[Task],
    *,
    most_bytes: int | None,
    progress: Say,
) -> None:
    """Writes which items of scored tasks the training data of a run holds, as far as that is not known.

    What was found once stands for as long as the run's record says that it was trained on the rows that it was found
    in, whether they can be read now or not; the newest line of a task says all that is known.

    Args:
        store: The run folder, with its scores.
        tasks: Those whose items are looked for, where the run has a score of them.
        most_bytes: As of :func:`training_data`.
        progress: Takes a line for each task.

    Raises:
        PosttrainError: The file cannot be written.
    """
    scored = {score.task_hash for score in ScoreStore(store).load()}
    wanted = [task for task in tasks if task.task_hash in scored and task.has_items]
    if not wanted:
        return
    data = training_data(store, most_bytes=most_bytes)
    log = read_jsonl_log(store / CONTAMINATION, [])
    known = {task.task_hash: _known(log, task, data) for task in wanted}
    asked: list[tuple[Task, list[Item]]] = []
    problems: dict[str, str] = {}  # why a task's items cannot be looked for
    for task in wanted:
        found = known[task.task_hash]
        looked_through = all(found.rows.get(source.identity) is not None for source in data.readable)
        if not data.readable or (found.items and looked_through):
            continue
        try:
            asked.append((task, task.items() or []))
        except PosttrainError as error:
            problems[task.task_hash] = f"the items of {task.spec.title} cannot be read: {first_line(error)}"
            progress(f"{store.name}: {problems[task.task_hash]}")
    looked, torn = _look(data.readable, asked) if asked else ({}, {})
    sources = tuple(replace(source, problem=torn.get(source.identity, source.problem)) for source in data.sources)
    lines = []
    for task in wanted:
        found = known[task.task_hash].with_newer(looked.get(task.task_hash, _Found()))
        problem = problems.get(task.task_hash)
        lines.append(_line(task, found, sources, (*data.unseen, *([problem] if problem else []))))
    newest = {line.get("task_hash"): line for line in log}
    with locked(store / LOCKS / "contamination", wait=True):
        for line in lines:
            if line != newest.get(line["task_hash"]):
                append_line(store / CONTAMINATION, json.dumps(line, ensure_ascii=False))
    for problem in torn.values():
        progress(f"{store.name}: {problem}")
    for line in lines:
        if line["task_hash"] in looked and line["sources"]:
            short = f", {len(line['lost'])} too short to be found" if line["lost"] else ""
            told = f"{len(line['touched'])} of {line['items']} items are in the training data{short}"
            progress(f"{store.name}: {line['task']}: {told}")


@dataclass(frozen=True)
class _Found:
    """What is known of a task's items.

    Attributes:
        items: How many there are.
        lost: Ids of those too short to be found.
        rows: How many rows each source has that was looked through; None of one that broke off.
        touched: What was found, by the item's id.
    """

    items: int = 0
    lost: tuple[str, ...] = ()
    rows: dict[str, int | None] = field(default_factory=dict)
    touched: dict[str, dict[str, Any]] = field(default_factory=dict)

    def with_newer(self, newer: "_Found") -> "_Found":
        """Returns both: nothing that was found is given up."""
        rows = {key: rows for key, rows in newer.rows.items() if rows is not None or not self.rows.get(key)}
        last = newer if newer.items else self
        return _Found(
            last.items,
            last.lost,
            self.rows | rows,
            newer.touched | {key: item for key, item in self.touched.items() if key not in newer.touched},
        )


def _known(log: Sequence[dict[str, Any]], task: Task, data: TrainingData) -> _Found:
    """Returns what is known of a task's items in the rows that a run was trained on."""
    trained = {source.identity for source in data.sources}
    found = _Found()
    for line in log:
        of_task = (line.get("version"), line.get("rule"), line.get("task_hash")) == (VERSION, RULE.name, task.task_hash)
        if of_task and line["sources"].keys() <= trained:
            touched = {item["id"]: item for item in line["touched"]}
            found = found.with_newer(_Found(line["items"], tuple(line["lost"]), line["sources"], touched))
    return found


def _line(task: Task, found: _Found, sources: Sequence[TrainingSource], unseen: Sequence[str]) -> dict[str, Any]:
    """Returns the line that says what is known of a task, and what is not."""
    hidden: dict[bool, list[str]] = {True: [], False: []}  # clauses, by whether the rows were looked through before
    for source in sources:
        if source.problem:
            hidden[found.rows.get(source.identity) is not None].append(source.problem)
    return {
        "version": VERSION,
        "rule": RULE.name,
        "task": task.spec.title,
        "task_hash": task.task_hash,
        "items": found.items,
        "rows": sum(filter(None, found.rows.values())),
        "sources": found.rows,
        "unseen": list(dict.fromkeys([*unseen, *hidden[False]])),
        "seen_before": list(dict.fromkeys(hidden[True])),
        "lost": list(found.lost),
        "touched": list(found.touched.values()),
    }


def _look(
    sources: Sequence[TrainingSource], asked: Sequence[tuple[Task, list[Item]]]
) -> tuple[dict[str, _Found], dict[str, str]]:
    """Looks for the items of all tasks at once.

    Returns:
        What was found of each task, and why sources broke off.
    """
    overlap = Overlap(RULE, [item for _, mine in asked for item in mine])
    places: dict[int, tuple[str, str]] = {}  # of the rows that are evidence
    rows: dict[str, int | None] = {}
    torn: dict[str, str] = {}
    for source in sources:
        before = overlap.rows
        try:
            for batch in _batches(source.source):
                first = overlap.rows
                overlap.look(split_words([text_of(row.values) for row in batch]))
                for match in overlap.evidence().values():
                    if match.row >= first:
                        places[match.row] = (source.run, batch[match.row - first].where)
            rows[source.identity] = overlap.rows - before
        except DataError as error:
            rows[source.identity] = None
            torn[source.identity] = f"{source.source.title} of {source.run} cannot be read whole: {first_line(error)}"
    seen, evidence = overlap.seen(), overlap.evidence()
    found, first = {}, 0
    for task, mine in asked:
        numbers = range(first, first + len(mine))
        touched = {}
        for item, number in zip(mine, numbers, strict=True):
            if seen[number]:
                match = evidence[number]
                touched[item.id] = asdict(Touched(item.id, item.question[:_SHOWN], *places[match.row], match.span))
        lost = tuple(item.id for item, number in zip(mine, numbers, strict=True) if overlap.lost[number])
        found[task.task_hash] = _Found(len(mine), lost, rows, touched)
        first += len(mine)
    return found, torn


def _batches(source: SourceSpec) -> Iterator[list[Row]]:
    """Yields the rows of a source, some at a time."""
    rows = (row for row in read_rows(source, Path()) if row.problem is None)
    rows = islice(rows, source.limit)
    while batch := list(islice(rows, _BATCH)):
        yield batch
