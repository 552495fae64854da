"""Which items of scored tasks the training data of a run holds, its ancestors' data included.

The data is read again, from where the recipes of the run and of the runs that it came from say; what is not there any
more, has changed since, or was never known (a model from elsewhere) is said as such, and what it holds is unknown. An
item counts as touched by PaLM's rule, whose paper gives scores on the items that it leaves (Chowdhery et al. 2022,
arXiv:2204.02311, section 8): 70% of its 8-grams are in the data. Rows that training dropped or did not come to count,
and so does the whole data of a run at each of its checkpoints: touched means at most that a model has seen an item.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..chat_templates.errors import PosttrainError, first_line
from ..data_tools.errors import DataError
from ..data_tools.files import append_line, hash_json, locked, read_jsonl_log
from ..data_tools.ngrams import split_words
from ..data_tools.overlap import RULES, Item, Overlap, text_of
from ..data_tools.sources import Row, content_hash, is_hub, local_files, read_rows
from ..data_tools.spec import SourceSpec
from .records import CONTAMINATION, LOCKS, ScoreStore
from .runs import lineage
from .task import Task

RULE = RULES["palm"]
VERSION = 2  # raise it whenever the same data would touch other items
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
        run: The run whose data holds it.
        row: Where the row is that holds most of it.
        words: The longest run of its words there.
    """

    id: str
    question: str
    run: str
    row: str
    words: str


@dataclass(frozen=True)
class TrainingData:
    """The sources that a run and its ancestors were trained on.

    Attributes:
        sources: With the name of the run that read each; paths are absolute.
        unseen: What cannot be read, a clause each.
        key: Changes with anything of this.
    """

    sources: tuple[tuple[str, SourceSpec], ...]
    unseen: tuple[str, ...]
    key: str


def training_data(run_dir: Path, *, most_bytes: int | None = MOST_BYTES) -> TrainingData:
    """Finds the training data of a run and of those that it came from, and proves that it is what they were trained on.

    Args:
        run_dir: The run folder.
        most_bytes: What all files together may weigh to be read; None for no bound.
    """
    found: list[tuple[str, SourceSpec, str | None]] = []  # with the hash of what was read
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
            try:
                place = {"path": _place(values["path"], record, folder), "name": values["path"]}
                found.append((name, SourceSpec.model_validate(values | place), content))
            except ValidationError as error:  # the recipe of a version with other keys
                unseen.append(f"what {name} was trained on cannot be read: {first_line(error)}")
    if parent:  # no run that could be followed further
        unseen.append(f"what {parent.get('name')} was trained on is unknown")
    weight = sum(_weight(source) for _, source, _ in found)
    if most_bytes is not None and weight > most_bytes:
        unseen.append(f"{weight / 1e9:.1f} GB of training data are not looked through without `contamination: always`")
        found = []
    sources: list[tuple[str, SourceSpec]] = []
    hashes: list[str] = []
    for name, source, content in found:
        try:
            now = content_hash(source, Path())
        except DataError as error:
            unseen.append(f"{source.title} of {name} cannot be read: {first_line(error)}")
            continue
        if content is None:
            unseen.append(f"that {source.title} is what {name} was trained on cannot be proved")
        elif content != now:
            unseen.append(f"{source.title} has changed since {name} was trained on it")
            continue
        sources.append((name, source))
        hashes.append(now)
    told = [[name, source.model_dump(mode="json", exclude={"path", "weight"})] for name, source in sources]
    return TrainingData(tuple(sources), tuple(unseen), hash_json([told, hashes, unseen]))


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
    most_bytes: int | None = MOST_BYTES,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes which items of scored tasks the training data of a run holds, unless that is known.

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
    known = {line.get("key"): line for line in log}
    newest = {line.get("task_hash"): line.get("key") for line in log}
    again = {}  # data that is back as it was: what was found in it counts again, for which it must be the last line
    asked: dict[str, tuple[Task, list[Item]]] = {}
    for task in wanted:
        key = hash_json([VERSION, RULE.name, task.task_hash, data.key])
        if key in known:
            if newest.get(task.task_hash) != key:
                again[key] = {name: value for name, value in known[key].items() if name != "key"}
            continue
        try:
            asked[key] = (task, task.items() or [])
        except PosttrainError as error:
            progress(f"{store.name}: {task.spec.title}: its items cannot be looked for in the training data: {error}")
    try:
        lines = _look(data, asked) if asked else {}
    except DataError as error:
        progress(f"{store.name}: its training data cannot be looked through: {error}")
        return
    with locked(store / LOCKS / "contamination", wait=True):
        for key, line in (again | lines).items():
            append_line(store / CONTAMINATION, json.dumps({"key": key} | line, ensure_ascii=False))
    for line in lines.values():
        if data.sources:
            short = f", {len(line['lost'])} too short to be found" if line["lost"] else ""
            told = f"{len(line['touched'])} of {line['items']} items are in the training data{short}"
            progress(f"{store.name}: {line['task']}: {told}")


def _look(data: TrainingData, asked: dict[str, tuple[Task, list[Item]]]) -> dict[str, dict[str, Any]]:
    """Looks for the items of all tasks at once; returns the line of each."""
    items = [item for _, mine in asked.values() for item in mine]
    overlap = Overlap(RULE, items)
    places: dict[int, tuple[str, str]] = {}  # of the rows that are evidence
    rows = 0
    for run, batch in _batches(data):
        overlap.look(split_words([text_of(row.values) for row in batch]))
        for match in overlap.evidence().values():
            if match.row >= rows:
                places[match.row] = (run, batch[match.row - rows].where)
        rows += len(batch)
    seen, evidence = overlap.seen(), overlap.evidence()
    lines, first = {}, 0
    for key, (task, mine) in asked.items():
        touched = []
        for number, item in enumerate(mine, start=first):
            if seen[number]:
                match = evidence[number]
                touched.append(asdict(Touched(item.id, item.question[:_SHOWN], *places[match.row], match.span)))
        lines[key] = {
            "task": task.spec.title,
            "task_hash": task.task_hash,
            "rule": RULE.name,
            "items": len(mine),
            "rows": rows,
            "runs": list(dict.fromkeys(run for run, _ in data.sources)),
            "unseen": list(data.unseen),
            "lost": [item.id for number, item in enumerate(mine, start=first) if overlap.lost[number]],
            "touched": touched,
        }
        first += len(mine)
    return lines


def _batches(data: TrainingData) -> Iterator[tuple[str, list[Row]]]:
    """Yields the rows of each source, some at a time, with the run that read them."""
    for run, source in data.sources:
        batch: list[Row] = []
        good = 0
        for row in read_rows(source, Path()):
            if row.problem is None:
                batch.append(row)
                good += 1
            if len(batch) == _BATCH:
                yield run, batch
                batch = []
            if good == source.limit:
                break
        yield run, batch
