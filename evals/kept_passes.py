"""What a task's passes gave, kept until its score is written, so that a task that was killed goes on where it stood."""

import contextlib
import functools
import glob
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..data_tools.files import append_line, read_jsonl_log
from .records import LOCKS

T = TypeVar("T")


class KeptPasses:
    """A log of passes, each known by all that decides what it gives but the model.

    Args:
        store: The folder of the model's scores.
        task: What tells the model and its task from others, fit for a file's name.
        rank: Of this process among those that score together: each writes a log of its own, and reads all.
        settings: What else decides what a pass gives, such as versions of packages.
    """

    def __init__(self, store: Path, task: str, rank: int = 0, settings: Any = None):
        self._folder, self._name, self._settings = store / LOCKS, f"passes-{task}", settings
        self._path = self._folder / f"{self._name}-{rank}.jsonl"

    @functools.cached_property
    def _known(self) -> dict[str, Any]:
        # What is damaged is run again: a disk that was full is no reason to give the task up.
        records = [record for path in self._logs() for record in read_jsonl_log(path, [])]
        return {record["pass"]: record["gave"] for record in records if record.keys() >= {"pass", "gave"}}

    def once(self, what: Any, run: Callable[[], T]) -> T:
        """Returns what a pass gives, run anew only if that is not known.

        Args:
            what: All that decides it, as JSON: what does not tell two passes apart gives one the other's results.
            run: Runs it; what it returns is JSON too. NaN and infinities are not kept.
        """
        key = hashlib.sha256(json.dumps([self._settings, what]).encode()).hexdigest()[:32]
        if key not in self._known:
            gave = run()
            with contextlib.suppress(ValueError):  # not a number: to be met again, and told
                append_line(self._path, json.dumps({"pass": key, "gave": gave}, allow_nan=False), sync=False)
            self._known[key] = gave
        return self._known[key]

    def remove(self) -> None:
        """Removes all logs of the task."""
        for path in self._logs():
            with contextlib.suppress(OSError):  # a folder of finished scores may be read-only
                path.unlink()

    def _logs(self) -> list[Path]:
        return sorted(self._folder.glob(f"{glob.escape(self._name)}-*.jsonl"))


def not_kept(what: Any, run: Callable[[], T]) -> T:
    """Runs a pass, as :meth:`KeptPasses.once` where nothing is kept."""
    return run()
