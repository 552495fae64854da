"""Scores a reward model, or a policy's implicit reward, on held-out preferences.

With the reward ``r`` of a prompt's chosen and rejected answer, and the margin ``m = r_c - r_r``:

- **accuracy**: the share of pairs with ``m > 0``; a tie counts one half.
- **kappa**: Cohen's kappa of the model's choice with the people's, ``2 accuracy - 1``. Which answer is shown first says
  nothing, so two judges without knowledge agree on half the pairs (Cohen, Educational and Psychological Measurement 20
  (1960), equation 1, with expected agreement 1/2).
- **nll**: ``-log sigmoid(m)``, the Bradley-Terry loss; ln 2 for a model that knows nothing.
- **brier**: ``(1 - sigmoid(m))^2``, the squared error of the Bradley-Terry probability; 0.25 for such a model.
- **ece**: of that probability; the confidence is that of the answer the model prefers (see ``calibration``).
- **margin**: the mean of ``m``, in the model's own unit.
- **margin_spearman**: Spearman's correlation of ``m`` with the margin that people gave, where rows have one.

Pairs that share a prompt are not independent; standard errors are then those of whole prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EvalError, SuiteError
from .forward import token_sums
from .heldout import fingerprint, read
from .models import LoadedModel, load_model
from .perplexity import ratio
from .records import Metric, Result, parquet
from .reward import RewardReader
from .spec import PairsSpec, SuiteSpec
from .stats.bootstrap import estimate, midranks
from .stats.classification import LOWER_IS_BETTER, correlation, ece, sigmoid

if TYPE_CHECKING:
    import numpy as np

_METHOD = 1  # raise when a change here changes figures
_HINT = "a policy needs the `reference` that it departed from; score other classifiers with `classification`"
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pairs:
    """Preference rows of a suite, found and hashed.

    Attributes:
        spec: What the suite says of them.
        task_hash: Of their content and of what decides how they are scored, but the weights and the chat template.
        reference: The reference's log-probabilities by the hash of the rows' tokens, since checkpoints share them.
    """

    spec: PairsSpec
    task_hash: str
    reference: dict[str, "np.ndarray"] = field(default_factory=dict, compare=False)


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


def run_pairs(task: Pairs, loaded: LoadedModel, suite: SuiteSpec) -> Result:
    """Compares the rewards of chosen and rejected answers.

    Raises:
        DataError: The rows cannot be read.
        EvalError: The checkpoint is neither a reward model nor, with a reference, a language model.
        SuiteError: There is no such metric.
    """
    import numpy as np

    spec = task.spec
    if spec.reference is None:
        loaded.needs_reward_model(spec.title, _HINT)
    else:
        loaded.needs_language_model(spec.title)
    rows, notes = read(spec, loaded, suite, "preference")
    sequences = {side: [(row["prompt_ids"], row[f"{side}_ids"]) for row in rows] for side in _SIDES}
    both = sequences["chosen"] + sequences["rejected"]
    size = suite.size_of_batch(spec.batch_size)
    if spec.reference is None:
        found = np.array(RewardReader(loaded, size, spec.title).values([[*prompt, *said] for prompt, said in both]))
    else:
        found = spec.beta * (_log_p(loaded.model, both, size) - _reference(task, both, loaded, suite))
    chosen, rejected = np.split(found, 2)
    given = np.array([row["margin"] for row in rows], dtype=np.float64) if rows and "margin" in rows[0] else None
    groups = np.unique([hash(tuple(row["prompt_ids"])) for row in rows], return_inverse=True)[1]
    metrics, more = figures(chosen - rejected, groups, given=given, seed=suite.seed)
    first = [metric for metric in metrics if metric.name == spec.metric]
    rest = [metric for metric in metrics if metric.name != spec.metric]
    notes += (*more, _length_note(rows))
    table = {side: [loaded.tokenizer.decode(row[f"{side}_ids"]) for row in rows] for side in _SIDES}
    table = {"prompt": [loaded.tokenizer.decode(row["prompt_ids"]) for row in rows], **table}
    samples = parquet({**table, "reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected})
    return Result((*first, *rest), samples, None, notes)


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
    import numpy as np

    n = len(margins)
    clustered = int(groups.max()) + 1 < n
    p = sigmoid(margins)
    right = np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))
    nll = np.logaddexp(0.0, -margins)
    means = {"accuracy": right, "nll": nll, "brier": np.square(1 - p), "margin": margins, "kappa": 2 * right - 1}
    metrics = []
    for name, values in means.items():
        value, error = ratio(*(np.bincount(groups, weights=w) for w in (values, np.ones(n))))
        metrics.append(Metric(name, value, error, n, name not in LOWER_IS_BETTER))
    calibration = ece(np.maximum(p, 1 - p), right)

    def bootstrapped(w: "np.ndarray") -> dict[str, "np.ndarray"]:
        rank = {} if given is None else {"margin_spearman": correlation(w, ranks[0](w), ranks[1](w))}
        return {"ece": calibration(w), **rank}

    ranks = (midranks(margins), midranks(margins if given is None else given))
    for name, item in estimate(bootstrapped, n, seed=seed, cost=16, groups=groups if clustered else None).items():
        if np.isfinite(item.value):
            metrics.append(item.metric(name, n, higher_is_better=name != "ece"))
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
    return -token_sums(model, [[*prompt, *answer] for prompt, answer in sequences], first, size)[0]


def _reference(
    task: Pairs, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], loaded: LoadedModel, suite: SuiteSpec
) -> "np.ndarray":
    """Returns the reference's log-probabilities, loading it once for all checkpoints with the same tokens.

    Raises:
        EvalError: Its tokens are not the checkpoint's.
    """
    from ..data_tools.files import hash_json

    spec = task.spec
    assert spec.reference is not None, "the caller has one"
    key = hash_json([[list(prompt), list(answer)] for prompt, answer in sequences])
    if key not in task.reference:
        reference = load_model(spec.reference, device=str(loaded.model.device), dtype=suite.dtype)
        reference.needs_language_model(spec.title)
        used = sorted({token for parts in sequences for part in parts for token in part})
        mine, other = (model.tokenizer.convert_ids_to_tokens(used) for model in (loaded, reference))
        embeddings: Any = reference.model.get_input_embeddings()
        if mine != other or used[-1] >= embeddings.num_embeddings:
            hint = "the reference is the model that the policy was trained from"
            raise EvalError("the reference has another vocabulary", where=spec.title, hint=hint)
        task.reference[key] = _log_p(reference.model, sequences, suite.size_of_batch(spec.batch_size))
    return task.reference[key]
