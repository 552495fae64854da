"""The leaderboard as plain data: ``leaderboard.json``, and what the other files are written from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..answers import Answer
from ..checkpoints import FINAL
from ..contamination import Touched
from ..judging.audit import AuditRow
from ..judging.judgments import Judgment
from ..stats.compare import Verdict
from ..stats.intervals import Interval
from .text import Record, mapping, plain

SCHEMA = 1
"""Version of ``leaderboard.json``; raised when a field changes its meaning or goes away."""

Standing = Literal["best", "overlaps"]
"""The best value of its column, or one whose 95% interval overlaps that of the best."""


@dataclass(frozen=True)
class Figure:
    """One metric of one task on one checkpoint.

    Attributes:
        metric: The metric's name.
        value: The value, or None where the record held no finite number; ``problem`` then says what it held.
        stderr: Its standard error, where recorded.
        n: How many items it is over.
        higher_is_better: The direction.
        interval: The 95% interval, or None where the record supports none.
        standing: How it stands in its column.
        problem: What is wrong with the record.
    """

    metric: str
    value: float | None
    stderr: float | None
    n: int | None
    higher_is_better: bool
    interval: Interval | None = None
    standing: Standing | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Cell:
    """The figures of one task on one checkpoint, and what was measured how.

    Attributes:
        column: Id of the column.
        figures: The metrics, the primary one first.
        marks: Footnote letters.
        score: The score record without its metrics, as it was read.
        earlier: Older records of the same measurement, complete, oldest first.
        tier: Rows of a tier could not be told from its best one, from 1; None where nothing could be compared.
    """

    column: str
    figures: tuple[Figure, ...]
    marks: tuple[str, ...] = ()
    score: Record = field(default_factory=dict)
    earlier: tuple[Record, ...] = ()
    tier: int | None = None

    @property
    def is_unseen(self) -> bool:
        """Says whether it is another harness's figure of which no items are known: shown, and never compared."""
        return mapping(self.score.get("foreign")).get("items_known") is False

    def figure(self, metric: str) -> Figure | None:
        """Returns the figure of a metric."""
        return next((figure for figure in self.figures if figure.metric == metric), None)


@dataclass(frozen=True)
class RowDifference:
    """One row's primary figure less another's, in the metric's own unit.

    Attributes:
        column: Id of the column.
        row: Id of the row.
        against: Id of the row that is taken away.
        value: The difference.
        low: Lower end of its 95% interval; None where no spread is known.
        high: Upper end.
        verdict: What may be said, given ``p`` and the metric's direction.
        p: Two-sided, adjusted for all comparisons of the page.
        smallest: The smallest true difference that this many items would have shown four times out of five.
        n: Items compared.
        method: ``paired`` by item; ``unpaired`` where single items are not known; ``win rate`` for a judged row against
            the very row that it was judged against, which stands at a half.
    """

    column: str
    row: str
    against: str
    value: float
    low: float | None
    high: float | None
    verdict: Verdict
    p: float | None
    smallest: float | None
    n: int | None
    method: Literal["paired", "unpaired", "win rate"]


@dataclass(frozen=True)
class Transition:
    """What a stage gained and lost: a run's last row less the row of its parent that it started from.

    Attributes:
        run: Id of the run.
        before: Id of the parent's row.
        after: Id of the run's last row.
        differences: By column, as far as both rows have a figure; adjusted for the tasks of this stage.
    """

    run: str
    before: str
    after: str
    differences: tuple[RowDifference, ...]


@dataclass(frozen=True)
class Pick:
    """The best row of a column, chosen on one half of the items and measured on the other.

    Attributes:
        column: Id of the column.
        row: Id of the row that did best on the first half.
        chosen: Its figure there, too good by what luck chose.
        value: Its figure on the second half: the one to quote.
        low: Lower end of that one's 95% interval, where known.
        high: Upper end.
        whole: Its figure on all items.
        candidates: Rows that it was chosen from.
        items: Items that all of them have.
    """

    column: str
    row: str
    chosen: float
    value: float
    low: float | None
    high: float | None
    whole: float
    candidates: int
    items: int


@dataclass(frozen=True)
class Badge:
    """A fact about a row that is no figure, such as whether its merged model is the one that was trained.

    Attributes:
        text: What stands at the row's name.
        kind: Whether that is good, bad, or neither.
        detail: What a pointer shows, and the row's details say.
    """

    text: str
    kind: Literal["good", "bad", "neutral"]
    detail: str


@dataclass(frozen=True)
class Headline:
    """What a busy reader is told first: the best row by one column, and how it stands to one other row in all.

    Attributes:
        column: Id of the column that rows are ordered by: the mean of a group of tasks where there is one.
        row: Id of the best row there.
        level: Ids of the other rows that could not be told from it there.
        against: Id of the row that it is compared with: the baseline, or where it is that itself the second best.
        better: Ids of the columns in which it is better.
        worse: In which it is worse.
        undecided: In which both have a figure and nothing can be said.
    """

    column: str
    row: str
    level: tuple[str, ...] = ()
    against: str | None = None
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()


@dataclass(frozen=True)
class ColumnMetric:
    """A metric that a column can show; ``unit`` is ``"%"`` for shares of items and means of such (shown times 100)."""

    name: str
    higher_is_better: bool
    unit: Literal["", "%"]


@dataclass(frozen=True)
class Column:
    """One measurement: a task with the same items, few-shot count and limit in every row.

    Attributes:
        id: Stable within the leaderboard: ``c1``, ``c2``, ….
        task: The task's name.
        variant: What tells this column from others of the same task; empty for the only one.
        metrics: The metrics found, the primary one first.
        task_hash: Hash of the task's definition and items.
        num_fewshot: Examples in the prompt.
        limit: Set where only the first ``limit`` items were scored.
        judge: Name and version of the judge, where one took part.
        opponent: Weights hash of the one that all were judged against, where there is just one.
        stamp: What a reader must know of the judge at every figure, such as "rules, not a judge".
        clean: Whether each row's figure is over the items that its training data does not touch.
        group: The tasks that it is the mean of; empty for a task.
    """

    id: str
    task: str
    variant: str
    metrics: tuple[ColumnMetric, ...]
    task_hash: str | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    judge: str | None = None
    opponent: str | None = None
    stamp: str | None = None
    clean: bool = False
    group: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Returns the task, with the variant that tells it from others of the same name."""
        return f"{self.task} ({self.variant})" if self.variant else self.task

    @property
    def primary(self) -> ColumnMetric:
        """Returns the metric that stands for the task."""
        return self.metrics[0]

    def metric(self, name: str) -> ColumnMetric:
        """Returns the metric of a name."""
        return next(metric for metric in self.metrics if metric.name == name)

    @property
    def main(self) -> tuple[ColumnMetric, ...]:
        """Returns the metrics that the table offers: the primary one, and all but those of single classes."""
        return (*self.metrics[:1], *(metric for metric in self.metrics[1:] if "/" not in metric.name))


@dataclass(frozen=True)
class CurvePoint:
    """A policy's rewards at a distance from the policy that it departed from.

    Attributes:
        at: The training step, or the n of best-of-n.
        kl: The KL divergence in nats for a whole answer.
        reward: The reward that is optimised.
        gold: The reward that is not, or None where none was logged.
        reward_stderr: Standard error of the first, where known.
        gold_stderr: Of the second.
        prompts: How many those are over, where known.
    """

    at: int
    kl: float
    reward: float
    gold: float | None = None
    reward_stderr: float | None = None
    gold_stderr: float | None = None
    prompts: int | None = None


@dataclass(frozen=True)
class Curve:
    """How far the optimised reward and the gold reward part as a policy moves away.

    Attributes:
        name: The run's name, or the folder of a best-of-n.
        kind: Where the points come from.
        points: In the order of training, or of n.
        run: The id of the run; None for best-of-n.
        reward: Name of the optimised reward, where known.
        gold: Name of the gold reward, where known.
    """

    name: str
    kind: Literal["training", "evaluation", "best-of-n"]
    points: tuple[CurvePoint, ...]
    run: str | None = None
    reward: str | None = None
    gold: str | None = None


Agreement = Literal["same", "differs", "out of date"]
"""Whether two forms of a model are one; ``out of date`` where either has changed since they were compared."""
_WORST_FIRST: tuple[Agreement, ...] = ("differs", "out of date", "same")


@dataclass(frozen=True)
class Parity:
    """Two forms of a row's model, compared: adapter, merged model, GGUF file or server.

    Attributes:
        form: The one that is taken to be right.
        against: The other.
        verdict: What came of it.
        compared: What was compared.
        hidden: What could not be compared.
        detail: What differs, and why if that is known.
        created: When, in UTC.
    """

    form: str
    against: str
    verdict: Agreement
    compared: tuple[str, ...]
    hidden: tuple[str, ...]
    detail: str
    created: str


@dataclass(frozen=True)
class BoardRow:
    """One set of weights of one run.

    Attributes:
        id: Stable within the leaderboard: ``r1``, ``r2``, ….
        run: Id of the run.
        names: The folder names under which these weights lie, such as ``checkpoint-800`` and ``final``.
        step: Optimiser step within the run.
        position: Steps counted along the lineage, from the first ancestor's start.
        parent: Label of the row or run that this run started from.
        weights_hash: What identifies the weights.
        cells: Cell by column id.
        flags: What a reader must know about the row.
        badges: Facts about it that are no figures.
        tag: What tells the row from another of its run with the same step and names: the beginning of ``model_hash``.
        model_hash: What identifies the model, as judgments name it; the weights where an older version scored it.
        parity: Comparisons of forms of its model; empty where nobody has checked.
    """

    id: str
    run: str
    names: tuple[str, ...]
    step: int | None
    position: int | None
    parent: str | None
    weights_hash: str | None
    cells: dict[str, Cell]
    flags: tuple[str, ...]
    model_hash: str | None = None
    tag: str = ""
    badges: tuple[Badge, ...] = ()
    parity: tuple[Parity, ...] = ()

    @property
    def one_model(self) -> Agreement | Literal["not checked"]:
        """Returns the worst of what came of comparing its forms: whether they are one model."""
        found = {one.verdict for one in self.parity}
        for verdict in _WORST_FIRST:
            if verdict in found:
                return verdict
        return "not checked"

    @property
    def label(self) -> str:
        """Returns ``step 800, final`` and the like, with the model's hash where another row of the run reads so."""
        parts = [f"step {self.step}"] if self.step is not None else []
        named = [name for name in self.names if name != f"checkpoint-{self.step}"]
        if named == ["checkpoint-0"]:
            named = []
        return ", ".join(parts + named) + (f" ({self.tag})" if self.tag else "")

    def figure(self, column: Column) -> Figure | None:
        """Returns the row's primary figure in a column."""
        cell = self.cells.get(column.id)
        return cell.figure(column.primary.name) if cell else None


@dataclass(frozen=True)
class BoardRun:
    """A run folder's provenance and training log.

    Attributes:
        id: Stable within the leaderboard: ``run1``, ``run2``, ….
        name: The run's name, made unique by its folder where two runs share one.
        folder: Its folder, relative to the common parent of all runs.
        stage: The recipe's stage.
        parent: Id of the parent run, if it is on the leaderboard.
        fork: Id of the parent's row that it started from, if that is.
        offset: Steps of the lineage before this run's first.
        seed: The seed of ``run.json``, or of its recipe where an older record has none of its own.
        record: ``run.json`` as it was read.
        losses: ``(step, loss)`` of the training log.
        eval_losses: ``(step, eval_loss)`` of the training log.
        source_losses: By the name of a source of its training data, ``(step, loss)`` of the training log.
        problems: What could not be read.
    """

    id: str
    name: str
    folder: str
    stage: str | None = None
    parent: str | None = None
    fork: str | None = None
    offset: int = 0
    seed: int | None = None
    record: Record = field(default_factory=dict)
    losses: tuple[tuple[int, float], ...] = ()
    eval_losses: tuple[tuple[int, float], ...] = ()
    source_losses: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def last_row(rows: Sequence[BoardRow]) -> BoardRow:
    """Returns the final model of a run, or else its last row."""
    return next((row for row in rows if FINAL in row.names), rows[-1])


@dataclass(frozen=True)
class Notice:
    """Something the reader must see before comparing; ``error`` for input that was left out."""

    level: Literal["warning", "error"]
    text: str


@dataclass(frozen=True)
class Rate:
    """An estimate with its 95% interval; ``low`` and ``high`` are None where no spread is known."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Player:
    """A model that was judged or judged against.

    Attributes:
        id: Its weights hash, or ``file:<hash>`` for a file of answers.
        name: As the leaderboard names it, or as it was named when it was judged.
        row: Id of its row, or None if it has none here.
    """

    id: str
    name: str
    row: str | None = None


@dataclass(frozen=True)
class Match:
    """All battles of two players before one judge.

    Attributes:
        candidate: Id of the player whose wins are counted.
        opponent: Id of the other.
        wins: The raw win rate, a share; ties count one half.
        controlled: The length-controlled win rate, or None where it cannot be known.
        note: Why it cannot.
        battles: Verdicts that it rests on.
        ties: How many of them were ties.
        missing: Battles without a verdict.
        low: What the raw win rate would be if every missing battle were lost.
        high: And if every one were won.
        verdict: Whether the candidate wins more than half, as one of all comparisons of the page.
        p: Two-sided, adjusted for them.
    """

    candidate: str
    opponent: str
    wins: Rate
    controlled: Rate | None
    note: str | None
    battles: int
    ties: int
    missing: int
    low: float
    high: float
    verdict: Verdict = "no verdict"
    p: float | None = None


@dataclass(frozen=True)
class RankedPlayer:
    """A player's place by Bradley-Terry, with what the bootstrap over prompts says of it.

    Who never won has no lower end, who never lost no upper one. Tier and ranks follow from the page's verdicts.
    """

    player: str
    rating: float
    low: float | None
    high: float | None
    rank_low: int = 1
    rank_high: int = 1
    tier: int = 1


@dataclass(frozen=True)
class JudgeCost:
    """What judging one candidate took; None where nobody counted."""

    candidate: str
    calls: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    seconds: float | None


@dataclass(frozen=True)
class Judging:
    """What one version of a judge said of the answers to one prompt set.

    Attributes:
        judge: The judge's name.
        version: Its version.
        backend: ``endpoint``, ``model``, ``reward``, ``rules`` or ``human``.
        model: The model behind it, the rule, or the voters.
        task: The prompt set.
        stamp: What a reader must know at every figure, such as "rules, not a judge".
        players: Whoever took part, those with rows first and in their order.
        matches: In the order of the players; each pair once, as it was judged.
        ranking: Best first; empty where the battles do not connect three players.
        ranking_note: Why there is no ranking, or what a reader must know of it; None if nothing.
        audit: The row that sums the judge up, then one for each pair of players.
        spent: For each candidate.
        prompts: How many prompts were judged.
    """

    judge: str
    version: str
    backend: str
    model: str
    task: str
    stamp: str | None
    players: tuple[Player, ...]
    matches: tuple[Match, ...]
    ranking: tuple[RankedPlayer, ...]
    ranking_note: str | None
    audit: tuple[AuditRow, ...]
    spent: tuple[JudgeCost, ...]
    prompts: int


@dataclass(frozen=True)
class Usage:
    """What a row's answers to a prompt set came to: facts, never ranked.

    Attributes:
        row: Id of the row.
        task: The prompt set.
        answers: How many.
        characters: Mean length of an answer.
        tokens: Mean tokens of an answer, or None where nobody counted.
        stopped: Share of answers that ended by themselves.
        empty: How many said nothing.
        seconds: Mean time of an answer, or None.
        settings: How they were drawn, as text.
    """

    row: str
    task: str
    answers: int
    characters: float
    tokens: float | None
    stopped: float
    empty: int
    seconds: float | None
    settings: str


@dataclass(frozen=True)
class PlayerAnswer:
    """One player's answer to a prompt, or to an item of a task; ``mark`` is then what it got for it."""

    player: str
    answer: Answer
    mark: str = ""


@dataclass(frozen=True)
class AnsweredPrompt:
    """One prompt with what each player answered (the prompt stands in every answer), and what the judges said of it."""

    task: str
    answers: tuple[PlayerAnswer, ...]
    judgments: tuple[Judgment, ...] = ()

    @property
    def prompt(self) -> Answer:
        """Returns what was asked, with the first answer to it."""
        return self.answers[0].answer

    def judgments_of(self, given: PlayerAnswer) -> list[Judgment]:
        """Returns what was said of an answer as the candidate's."""
        about = (given.player, given.answer.sample)
        return [judgment for judgment in self.judgments if (judgment.candidate, judgment.sample) == about]


@dataclass(frozen=True)
class Contamination:
    """Which items of a task the training data of a run and its ancestors holds.

    Attributes:
        run: Id of the run.
        task: The task.
        task_hash: Its hash.
        items: How many items were looked for.
        rows: In how many rows.
        lost: How many items are too short to be found.
        unseen: What training data could not be looked through, a clause each.
        seen_before: What was looked through before and cannot be read any more, likewise.
        touched: The items that were found.
    """

    run: str
    task: str
    task_hash: str
    items: int
    rows: int
    lost: int
    unseen: tuple[str, ...]
    seen_before: tuple[str, ...]
    touched: tuple[Touched, ...]


@dataclass(frozen=True)
class Leaderboard:
    """Everything on the page.

    Attributes:
        title: The heading.
        runs: Parents before children.
        rows: Along the lineage: parents before children, then by step.
        order: Ids of the rows, the best first by the headline's column, then those without a figure there.
        headline: What stands first; None without scores.
        columns: In the order in which the tasks were first scored; variants of a task side by side.
        footnotes: Text by letter.
        notices: What to know before comparing.
        curves: Of rewards against KL: those of runs, then those of best-of-n.
        baseline: Id of the row that all others are compared with; None without scores.
        chosen: Whether the reader chose the baseline.
        differences: Every row against the baseline.
        pairs: Every later row against every earlier one; empty where they would be too many.
        ledger: What each stage gained and lost.
        compared: How many comparisons the page may speak of: the one family that all of its verdicts are adjusted for.
        picks: The best row of each column, measured on items that did not choose it.
        judgings: What each judge said of each prompt set.
        usage: Answers' length, finish and latency, for each row and prompt set.
        contamination: What is known of test items in training data.
        samples: Prompts with every row's answer and the judges' verdicts; not part of ``leaderboard.json``.
        items: Items of tasks on which rows differ most; not part of ``leaderboard.json`` either.
        schema: Version of these fields.
    """

    title: str
    runs: tuple[BoardRun, ...]
    rows: tuple[BoardRow, ...]
    columns: tuple[Column, ...]
    footnotes: dict[str, str] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    curves: tuple[Curve, ...] = ()
    baseline: str | None = None
    chosen: bool = False
    differences: tuple[RowDifference, ...] = ()
    pairs: tuple[RowDifference, ...] = ()
    ledger: tuple[Transition, ...] = ()
    compared: int = 0
    picks: tuple[Pick, ...] = ()
    order: tuple[str, ...] = ()
    headline: Headline | None = None
    judgings: tuple[Judging, ...] = ()
    usage: tuple[Usage, ...] = ()
    contamination: tuple[Contamination, ...] = ()
    samples: tuple[AnsweredPrompt, ...] = ()
    items: tuple[AnsweredPrompt, ...] = ()
    schema: int = SCHEMA

    def row(self, identity: str) -> BoardRow:
        """Returns the row of an id."""
        return next(row for row in self.rows if row.id == identity)

    @property
    def checks_parity(self) -> bool:
        """Returns whether the forms of any row's model were compared."""
        return any(row.parity for row in self.rows)

    @property
    def ranked(self) -> tuple[BoardRow, ...]:
        """Returns the rows, the best first."""
        return tuple(map(self.row, self.order)) or self.rows

    def fork(self, run: BoardRun) -> BoardRow | None:
        """Returns the row of its parent that a run started from, if it is there."""
        return self.row(run.fork) if run.fork else None

    def run_of(self, row: BoardRow) -> BoardRun:
        """Returns the run that a row belongs to."""
        return next(run for run in self.runs if run.id == row.run)

    def label(self, row: BoardRow) -> str:
        """Returns ``sft step 800, final`` as it is shown."""
        return f"{plain(self.run_of(row).name)} {plain(row.label)}".strip()

    def players(self) -> dict[str, Player]:
        """Returns a player for each model with a row, by model hash, in the order of the rows."""
        found: dict[str, Player] = {}
        for row in self.rows:
            if row.model_hash:
                found.setdefault(row.model_hash, Player(row.model_hash, self.label(row), row.id))
        return found

    def possible(self, row: BoardRow, column: Column) -> bool:
        """Says whether a row could have a figure in a column: a classifier has no perplexity, and so on.

        Told by which kinds of runs have one there.
        """
        head = _head(self.run_of(row))
        return any(column.id in other.cells and _head(self.run_of(other)) == head for other in self.rows)


def _head(run: BoardRun) -> str:
    return run.stage if run.stage in ("reward", "classify") else "language"
