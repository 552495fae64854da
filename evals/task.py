"""What all things that a suite scores have in common, and the checkpoint that they are scored on.

Each kind has a module with a subclass of :class:`Task` and a ``define`` that makes it from what the suite says:
``harness`` (lm-eval's tasks), ``perplexity``, ``pairs``, ``classification``, ``own_metrics`` (functions of the user's)
and ``generations`` (prompts to answer).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data_tools.overlap import Item
from ..data_tools.progress import Say
from .models import LoadedModel
from .records import Result
from .runs import Target
from .spec import Chat, SuiteSpec

if TYPE_CHECKING:
    from lm_eval.api.model import LM


@dataclass
class Checkpoint:
    """A checkpoint that is being scored.

    Attributes:
        target: Where it lies and where its scores go.
        suite: The suite.
        load: Gives its model, loaded once.
        progress: Takes a line for each thing done.
        lm: The model as lm-eval's, once a task has asked for it.
    """

    target: Target
    suite: SuiteSpec
    load: Callable[[], LoadedModel]
    progress: Say
    lm: "LM | None" = None

    def language_model(self, task: str) -> LoadedModel:
        """Returns its model for a task that reads or writes text.

        Raises:
            EvalError: It is a classifier.
        """
        loaded = self.load()
        loaded.needs_language_model(task)
        return loaded


@dataclass(frozen=True)
class Task:
    """Something that a suite scores, found and hashed.

    Attributes:
        spec: What the suite says of it.
        task_hash: Of its content and of all that decides its result, but the weights and the chat template.
    """

    spec: Any
    task_hash: str

    is_divided = False
    """Whether several processes share its passes out, if a model of this process does them; else the first alone."""
    reads_checkpoint = False
    """Whether :meth:`check` depends on the checkpoint."""
    has_items = False
    """Whether :meth:`items` can say what it asks."""

    @property
    def needs_model(self) -> bool:
        """Whether it is done by the model that transformers loads."""
        return True

    @property
    def takes_answers(self) -> bool:
        """Whether it can be scored on a file of answers, without a model."""
        return False

    @property
    def is_remote(self) -> bool:
        """Whether :meth:`check` would fetch data from a network."""
        return False

    def needs(self) -> list[str]:
        """Returns what it reads and what packages it needs, in words."""
        return []

    def chat(self, suite: SuiteSpec) -> Chat:
        """Returns when its prompts are templated; texts never are."""
        return "never"

    def items(self) -> list[Item] | None:
        """Returns what it asks, with the right answers, for the search of them in training data; None if it cannot.

        Raises:
            PosttrainError: Its rows cannot be read.
        """
        return None

    def check_targets(self, targets: Sequence[Target]) -> None:
        """Refuses checkpoints that cannot be scored together.

        Raises:
            SuiteError: They cannot.
        """

    def check(self, folder: Path) -> None:
        """Looks at its rows and packages, so that what is wrong with them costs no model's loading.

        Args:
            folder: The checkpoint.

        Raises:
            PosttrainError: A package, a metric or a right answer is missing, or a row cannot be used.
        """

    def run(self, checkpoint: Checkpoint, template: str | None) -> Result:
        """Scores a checkpoint.

        Args:
            checkpoint: The checkpoint.
            template: The fingerprint of the chat template, if it is to be applied.

        Raises:
            PosttrainError: It cannot be scored on this checkpoint.
        """
        raise NotImplementedError

    def clean(self, target: Target) -> None:
        """Removes what was kept for the case of a kill, now that the score of a checkpoint is written."""
