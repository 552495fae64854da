"""A teacher's most likely tokens at every place that carries loss, computed once and read from the disk in training.

For teachers that do not fit beside their student, and for runs of several epochs, in which they would say the same
again. A place costs 8 k + 4 bytes.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...data_tools.cache import get_or_build
from ...data_tools.files import hash_json
from ...data_tools.progress import progress_shown
from ...evals import checkpoints
from ..model import pretrained, whole_weights
from .losses import IGNORED, predicting, top_k
from .teacher import last_hidden, load_teacher, logits_head, model_inputs

if TYPE_CHECKING:
    from datasets import Dataset

    from ...data_tools.prepare import Prepared
    from ..schema import TeacherSpec

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]

VERSION = 1  # raise it whenever the same input would give other numbers
ROW = "row"  # the column that says which row of the data a row is
IDS, LOG_Q, LOG_REST = "teacher_ids", "teacher_log_q", "teacher_log_rest"


@dataclass(frozen=True)
class CachedAnswers:
    """What a teacher said of the rows of a data set, mapped from the disk.

    Attributes:
        starts: Where the places of each row begin, and the end of the last [rows + 1].
        ids: Its likeliest tokens [places, k].
        log_q: Their log-probabilities [places, k].
        log_rest: The log of the mass of all others [places].
        mass: The mean probability of the k tokens together.
    """

    starts: np.ndarray
    ids: np.ndarray
    log_q: np.ndarray
    log_rest: np.ndarray
    mass: float

    def of_rows(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns the answers for a batch, its places in the order of the batch's labels."""
        spans = [slice(self.starts[row], self.starts[row + 1]) for row in rows]
        columns = {IDS: self.ids, LOG_Q: self.log_q, LOG_REST: self.log_rest}
        found = {name: np.concatenate([values[span] for span in spans]) for name, values in columns.items()}
        return {name: torch.from_numpy(values) for name, values in found.items()}


@dataclass(frozen=True)
class AnswerCollator:
    """Adds the teacher's answers to each batch.

    Attributes:
        collate: Makes batches of rows.
        splits: The answers to the rows of each data set; a row's ``row`` column holds the set and the row's number.
    """

    collate: Collator
    splits: tuple[CachedAnswers, ...]

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Makes a batch, with the answers' columns behind its own."""
        batch = self.collate([{key: value for key, value in row.items() if key != ROW} for row in features])
        split = features[0][ROW][0]
        return {**batch, **self.splits[split].of_rows([row[ROW][1] for row in features])}


def numbered(rows: "Dataset", split: int) -> "Dataset":
    """Adds the column by which a row finds its answers."""
    return rows.add_column(ROW, [[split, number] for number in range(len(rows))])  # type: ignore[call-arg]


def ask(
    spec: "TeacherSpec",
    tokenizer: Any,
    rows: "Prepared",
    collate: Collator,
    args: Any,
    tokens: int,
    cache_dir: Path,
) -> CachedAnswers:
    """Returns the teacher's answers to the rows of a data set, found on the disk or made now.

    One process makes them and others wait; the teacher is in memory only meanwhile.

    Args:
        spec: The teacher.
        tokenizer: The student's.
        rows: What it is asked about.
        collate: Makes batches of rows, as in training.
        args: The student's ``DistillConfig``, its temperature among them: the mass outside of the ``top_k`` tokens that
            are kept cannot be known at another one later.
        tokens: Rows of the teacher's output layer that are tokens of the student too.
        cache_dir: Where they are kept, by the teacher's weights, the rows and the question.

    Raises:
        RecipeError: The teacher cannot be loaded.
    """
    assert spec.top_k is not None, "the caller has looked"
    k = min(spec.top_k, tokens)
    question = {"k": k, "temperature": args.temperature, "tokens": tokens, "bf16": bool(args.bf16)}
    if Path(spec.name_or_path).is_dir():
        identity = checkpoints.model_hash(Path(spec.name_or_path))
    else:
        pretrained(spec).config()  # asks the Hub which commit the revision is now
        identity = str(checkpoints.find_model(spec.name_or_path, spec.revision))
    key = "teacher-" + hash_json(
        {"version": VERSION, "teacher": identity, "dtype": spec.dtype, "rows": rows.fingerprint, **question}
    )

    def build(folder: Path) -> dict[str, Any]:
        with whole_weights():
            teacher: Any = load_teacher(spec, tokenizer).to(args.device)  # type: ignore[arg-type]
        return _write(teacher, rows.dataset, collate, args, k, tokens, folder)

    entry = get_or_build(cache_dir, key, build)
    starts, places = np.load(entry.folder / "starts.npy"), entry.report["places"]

    def mapped(name: str, dtype: type, *shape: int) -> np.ndarray:
        path = entry.folder / name
        return np.memmap(path, dtype, "r", shape=(places, *shape)) if places else np.empty((0, *shape), dtype)

    ids, log_q = mapped(IDS, np.int32, k), mapped(LOG_Q, np.float32, k)
    return CachedAnswers(starts, ids, log_q, mapped(LOG_REST, np.float32), entry.report["mass"])


@torch.no_grad()
def _write(
    teacher: Any, rows: "Dataset", collate: Collator, args: Any, k: int, tokens: int, folder: Path
) -> dict[str, Any]:
    """Runs the teacher over all rows and writes what it says; returns how many places and the mean mass of the k."""
    head, counts, mass = logits_head(teacher), [0], 0.0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in (IDS, LOG_Q, LOG_REST)}
        stack.enter_context(torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)))
        size = args.per_device_train_batch_size
        advance = stack.enter_context(progress_shown("asking the teacher", len(rows)))
        for start in range(0, len(rows), size):
            numbers = range(start, min(start + size, len(rows)))
            features = rows.select(numbers).to_list()
            counts += [int((collate([row])["labels"][:, 1:] != IGNORED).sum()) for row in features]
            batch = {
                key: value.to(args.device) if isinstance(value, torch.Tensor) else value
                for key, value in collate(features).items()
            }
            hidden, _ = predicting(last_hidden(teacher, model_inputs(batch)), batch["labels"])
            for part in range(0, len(hidden), args.chunk):
                logits = head(hidden[part : part + args.chunk]).float()[..., :tokens]
                ids, log_q, log_rest = top_k(logits, k, args.temperature)
                mass += float(log_q.exp().sum())
                for name, values in ((IDS, ids.int()), (LOG_Q, log_q), (LOG_REST, log_rest)):
                    files[name].write(values.cpu().numpy().tobytes())
            advance(len(numbers))
    np.save(folder / "starts.npy", np.cumsum(counts))
    places = int(sum(counts))
    return {"places": places, "mass": mass / max(1, places)}
