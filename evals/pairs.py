"""Scores a reward model, or a policy's implicit reward, on held-out preferences.

With the reward ``r`` of a prompt's chosen and rejected answer, and the margin ``m = r_c - r_r``:

- **accuracy**: the share of pairs with ``m > 0``; a tie counts one half.
- **kappa**: Cohen's kappa of the model's choice with the people's, ``2 accuracy - 1``. Which answer is shown first says
  nothing, so two judges without knowledge agree on half the pairs (Cohen, Educational and Psychological Measurement 20
  (1960), equation 1, with expected agreement 1/2).
- **nll**: ``-log sigmoid(m)``, the Bradley-Terry loss; ln 2 for a model that knows nothing.
- **brier**: ``(1 - sigmoid(m))^2``, the squared error of the Bradley-Terry probability; 0.25 for such a model.
- **ece**: of that probability; the confidence is that of the answer the model prefers (see ``stats.classification``).
- **margin**: the mean of ``m``, in the model's own unit.
- **margin_spearman**: Spearman's correlation of ``m`` with the margin that people gave, where rows have one.

Pairs that share a prompt are not independent; standard errors are then those of whole prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EvalError, SuiteError
from .forward import negative_log_likelihoods
from .heldout import RowsTask, fingerprint, is_limited
from .models import LoadedModel, load_model
from .records import Metric, Result, parquet
from .reward import RewardReader
from .spec import Chat, PairsSpec, SuiteSpec
from .stats.bootstrap import estimate, metric_of, midranks
from .stats.classification import correlation, ece, sigmoid
from .stats.intervals import LOWER_IS_BETTER, grouped_mean
from .task import Checkpoint

_METHOD = 1  # raise when a change here changes figures
_HINT = "a policy needs the `reference` that it departed from; score other classifiers with `classification`"
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pairs(RowsTask):
    """Preference rows of a suite, found and hashed.

    Attributes:
        spec: What the suite says of them.
        task_hash: As of :class:`Task`.
        reference: The reference's log-probabilities by the hash of the rows' tokens, since checkpoints share them.
    """

    spec: PairsSpec
    reference: dict[str, "np.ndarray"] = field(default_factory=dict, compare=False)

    kind = "preference"

    def chat(self, suite: SuiteSpec) -> Chat:
        """Pairs that are conversations have to be templated."""
        return "auto"

    def check(self, folder: Path) -> None:
        """Reads all rows; the end tells whether enough of them can be used."""
        for _ in self.written(folder):
            pass

    def run(self, checkpoint: Checkpoint, template: str | None) -> Result:
        """Compares the rewards of chosen and rejected answers, as :meth:`Task.run`."""
        spec, suite, loaded = self.spec, checkpoint.suite, checkpoint.load()
        if spec.reference is None:
            loaded.needs_reward_model(spec.title, _HINT)
        else:
            loaded.needs_language_model(spec.title)
        rows, notes = self.read(loaded, suite)
        sequences = [(row["prompt_ids"], row[f"{side}_ids"]) for side in _SIDES for row in rows]
        size = suite.size_of_batch(spec.batch_size)
        if spec.reference is None:
            reader = RewardReader(loaded, size, spec.title)
            found = np.array(reader.values([[*prompt, *said] for prompt, said in sequences]))
        else:
            found = spec.beta * (_log_p(loaded.model, sequences, size) - self._reference(sequences, loaded, suite))
        chosen, rejected = np.split(found, 2)
        given = np.array([row["margin"] for row in rows], dtype=np.float64) if rows and "margin" in rows[0] else None
        groups = np.unique([hash(tuple(row["prompt_ids"])) for row in rows], return_inverse=True)[1]
        metrics, more = figures(chosen - rejected, groups, given=given, seed=suite.seed)
        metrics.sort(key=lambda metric: metric.name != spec.metric)
        decode = loaded.tokenizer.decode
        table = {key: [decode(row[f"{key}_ids"]) for row in rows] for key in ("prompt", *_SIDES)}
        samples = parquet({**table, "reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected})
        said, limited = (*notes, *more, _length_note(rows)), is_limited(spec.source(), self.kind)
        return Result(tuple(metrics), samples, None, said, is_limited=limited)

    def _reference(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], loaded: LoadedModel, suite: SuiteSpec
    ) -> "np.ndarray":
        """Returns the reference's log-probabilities, loading it once for all checkpoints with the same tokens."""
        from ..data_tools.files import hash_json

        spec = self.spec
        assert spec.reference is not None, "the caller has one"
        key = hash_json([[list(prompt), list(answer)] for prompt, answer in sequences])
        if key not in self.reference:
            reference = load_model(spec.reference, device=str(loaded.model.device), dtype=suite.dtype)
            reference.needs_language_model(spec.title)
            used = sorted({token for parts in sequences for part in parts for token in part})
            mine, other = (model.tokenizer.convert_ids_to_tokens(used) for model in (loaded, reference))
            embeddings: Any = reference.model.get_input_embeddings()
            if mine != other or used[-1] >= embeddings.num_embeddings:
                hint = "the reference is the model that the policy was trained from"
                raise EvalError("the reference has another vocabulary", where=spec.title, hint=hint)
            self.reference[key] = _log_p(reference.model, sequences, suite.size_of_batch(spec.batch_size))
        return self.reference[key]


def define(spec: PairsSpec, suite: SuiteSpec) -> Pairs:
    """Hashes preference rows by content, and the reference as a model.

    Raises:
        SuiteError: The rows or the reference cannot be found.
    """
    from ..chat_templates.errors import PosttrainError
    from .checkpoints import model_hash

    reference = spec.reference
    if reference is not None and Path(reference).is_dir():
        try:
            reference = model_hash(Path(reference))
        except PosttrainError as error:
            raise SuiteError(str(error), where=spec.title) from error
    return Pairs(spec, fingerprint(spec, suite, kind="pairs", reference=reference, method=_METHOD))


def figures(
    margins: "np.ndarray", groups: "np.ndarray", *, given: "np.ndarray | None" = None, seed: int = 0
) -> tuple[list[Metric], tuple[str, ...]]:
    """Turns margins into figures and notes.

    Args:
        margins: Reward of the chosen answer less that of the rejected one, float64 ``[n]``.
        groups: The number of each pair's prompt, from 0, ``[n]``.
        given: The margin that people gave, ``[n]``, where known.
        seed: Of the bootstrap.
    """
    n = len(margins)
    clustered = int(groups.max()) + 1 < n
    p = sigmoid(margins)
    right = np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))
    nll = np.logaddexp(0.0, -margins)
    means = {"accuracy": right, "nll": nll, "brier": np.square(1 - p), "margin": margins, "kappa": 2 * right - 1}
    metrics = []
    for name, values in means.items():
        metrics.append(Metric(name, *grouped_mean(values, groups), n, name not in LOWER_IS_BETTER))
    calibration = ece(np.maximum(p, 1 - p), right)

    def bootstrapped(w: "np.ndarray") -> dict[str, "np.ndarray"]:
        rank = {} if given is None else {"margin_spearman": correlation(w, ranks[0](w), ranks[1](w))}
        return {"ece": calibration(w), **rank}

    ranks = (midranks(margins), midranks(margins if given is None else given))
    for name, item in estimate(bootstrapped, n, seed=seed, cost=16, groups=groups if clustered else None).items():
        if np.isfinite(item.value):
            metrics.append(metric_of(item, name, higher_is_better=name != "ece"))
    ties = int((margins == 0).sum())
    notes = [f"{ties} ties, counted one half each"] if ties else []
    notes += [f"{n} pairs of {groups.max() + 1} prompts: standard errors are those of prompts"] if clustered else []
    return metrics, tuple(notes)


def _length_note(rows: Sequence[dict[str, Any]]) -> str:
    """Says how far the length of answers alone gets, which a reward model has to beat."""
    longer = [len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows]
    share = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in longer) / len(longer)
    return f"always preferring the longer answer is right on {share:.1%} of the pairs"


def _log_p(model: Any, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], size: int) -> "np.ndarray":
    """Returns the log-probability of each answer behind its prompt, in nats, float64 ``[n]``."""
    first = [max(1, len(prompt)) for prompt, _ in sequences]
    rows = [[*prompt, *answer] for prompt, answer in sequences]
    return -negative_log_likelihoods(model, rows, first, size)
