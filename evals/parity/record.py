"""``parity.json`` beside a run: what was compared with what, keyed by both models, so that a stale one is known."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...chat_templates.errors import PosttrainError
from ...data_tools.files import hash_file, read_object, write_json
from ..checkpoints import model_hash
from .compare import FirstDifference, ParityCheck

PARITY = "parity.json"


@dataclass(frozen=True)
class Form:
    """One form of a model.

    Attributes:
        name: What it is, such as ``adapter on its base``, ``merged model`` or ``GGUF read back``.
        place: The folder or file, relative to the run's folder if it lies there; or an address.
        hash: What identifies the model there; None of a server, which does not say.
    """

    name: str
    place: str
    hash: str | None


@dataclass(frozen=True)
class ParityReport:
    """Two forms of one model, compared.

    Attributes:
        one: The form that is taken to be right.
        other: The other.
        checks: What was compared, in the order of what explains what.
        first: The first token that differs; None if none does, or none is known.
        tolerance: Name of the tolerance that held; see ``compare.TOLERANCES``.
        notes: What could not be compared, or was not what it could have been.
        created: When, in UTC.
        versions: Of the packages that took part.
        stale: Whether either form has changed since; known when it is read.
    """

    one: Form
    other: Form
    checks: tuple[ParityCheck, ...]
    first: FirstDifference | None
    tolerance: str
    notes: tuple[str, ...] = ()
    created: str = ""
    versions: dict[str, str] | None = None
    stale: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return all(check.status != "differs" for check in self.checks)

    @property
    def name(self) -> str:
        """Returns what was compared, in words."""
        return f"{self.one.name} against {self.other.name}"

    def check(self, name: str) -> ParityCheck | None:
        """Returns the check of a name."""
        return next((check for check in self.checks if check.name == name), None)

    @property
    def largest(self) -> float | None:
        """Returns the largest difference of a log-probability, in nats; None where none were compared."""
        found = self.check("log-probabilities")
        return found and found.largest


def write_comparison(folder: Path, comparison: ParityReport) -> None:
    """Adds a comparison to a folder's record, in the place of an older one of the same two forms."""
    kept = [item for item in _items(folder) if _key(item) != _key(asdict(comparison))]
    line = {name: value for name, value in asdict(comparison).items() if name != "stale"}
    write_json(folder / PARITY, {"schema": 1, "comparisons": [*kept, {**line, "passed": comparison.passed}]})


def read_comparisons(folder: Path) -> list[ParityReport]:
    """Reads what was compared in a run folder; what cannot be read is left out, and what has changed since is stale."""
    found = []
    for item in _items(folder):
        try:
            checks = tuple(ParityCheck(**check) for check in item["checks"])
            first = FirstDifference(**item["first"]) if item["first"] else None
            fields = {name: item[name] for name in ("tolerance", "created", "versions")}
            one, other = Form(**item["one"]), Form(**item["other"])
            made = ParityReport(one, other, checks, first, notes=tuple(item["notes"]), **fields)
        except (KeyError, TypeError):
            continue
        stale = any(form.hash is not None and hash_of(folder / form.place) != form.hash for form in (one, other))
        found.append(replace(made, stale=stale))
    return found


def hash_of(place: Path) -> str | None:
    """Returns what identifies a model folder or file; None if there is none."""
    if place.is_file():
        return hash_file(place)
    try:
        return model_hash(place) if place.is_dir() else None
    except PosttrainError:  # no weights are left
        return None


def _items(folder: Path) -> list[dict[str, Any]]:
    items = read_object(folder / PARITY).get("comparisons")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _key(item: dict[str, Any]) -> tuple[Any, ...]:
    forms = [item.get("one"), item.get("other")]
    return tuple((form.get("name"), form.get("place")) if isinstance(form, dict) else None for form in forms)
