"""The judged part of a leaderboard as plain data: matches, rankings, audits, answers."""

from dataclasses import dataclass

from ..judging.audit import AuditRow
from ..stats.compare import Verdict


@dataclass(frozen=True)
class Share:
    """An estimate with its 95% interval; ``low`` and ``high`` are None where no spread is known."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0


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
    wins: Share
    controlled: Share | None
    note: str | None
    battles: int
    ties: int
    missing: int
    low: float
    high: float
    verdict: Verdict = "no verdict"
    p: float | None = None


@dataclass(frozen=True)
class Ranked:
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
class Spent:
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
    ranking: tuple[Ranked, ...]
    ranking_note: str | None
    audit: tuple[AuditRow, ...]
    spent: tuple[Spent, ...]
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
    settings: str = ""


@dataclass(frozen=True)
class Given:
    """One player's answer to a prompt, or to an item of a task; ``mark`` is then what it got for it."""

    player: str
    sample: int
    key: str
    texts: tuple[str, ...]
    raw: tuple[str, ...]
    finish: tuple[str, ...]
    tokens: int | None
    seconds: float | None
    mark: str = ""


@dataclass(frozen=True)
class Said:
    """One judgment of an answer, or of two."""

    judge: str
    version: str
    stamp: str | None
    candidate: str
    opponent: str | None
    sample: int
    order: str
    repeat: int
    status: str
    preference: float | None
    rating: float | None
    reason: str


@dataclass(frozen=True)
class Sample:
    """One prompt, with what each player answered and what the judges said of it."""

    task: str
    prompt_id: str
    prompt_key: str
    category: str | None
    turns: tuple[str, ...]
    references: tuple[str, ...] | None
    answers: tuple[Given, ...]
    said: tuple[Said, ...]
