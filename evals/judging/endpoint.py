"""A judge behind an OpenAI-compatible server. What it replied is kept raw, beside the run, before it is read."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...data_tools.endpoint import REJECTED, Budget, EndpointSpec, Reply, Request
from ...data_tools.endpoint_client import Endpoint
from ...data_tools.files import write_json
from ..judges import Judge
from .parse import Verdict, from_tokens, parse
from .prompt import JudgePrompt, Rendered
from .questions import Question

RECORDS = ".judging"
_TOP = 20  # as many likeliest tokens as OpenAI's protocol gives


class EndpointJudge:
    """Asks a server.

    The budget is that of a suite's entry: what its records in all given run folders have spent counts.

    Args:
        judge: Who is asked.
        name: What the records are called: the entry's title, and the member of a jury.
        homes: The run folders whose records count.
    """

    def __init__(self, judge: Judge, name: str, homes: Sequence[Path]):
        self.judge, self.name, self.homes = judge, name, list(dict.fromkeys(homes))
        given = {key: getattr(judge.settings, key) for key in EndpointSpec.model_fields}
        self.spec = EndpointSpec(**given)
        self._endpoints: dict[Path, Endpoint] = {}

    def record(self, home: Path) -> Path:
        """Returns where the server's replies for a run's answers are kept."""
        return home / RECORDS / f"{self.name}.jsonl"

    def known_way(self) -> str | None:
        """Returns how the judge answers, if the configuration or an earlier probe says so, else None."""
        settings = self.judge.settings
        if settings.answer_by != "auto":
            return settings.answer_by
        if settings.kind == "rating":
            return "text"
        for home in self.homes:
            try:
                probed = json.loads((home / RECORDS / f"{self.name}.probe.json").read_text())
                if probed["server"] == self._server():
                    return str(probed["by"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def way(self) -> str:
        """Returns how the judge answers; the server is probed once, and its answer is kept."""
        known = self.known_way()
        if known is None:
            home = self.homes[0]
            known = "logprobs" if self._endpoint(home).probe_logprobs() else "text"
            probed = {"server": self._server(), "by": known}
            write_json(home / RECORDS / f"{self.name}.probe.json", probed)
        return known

    def _server(self) -> dict[str, Any]:
        return {"model": self.spec.model, "base_url": self.spec.base_url, "extra": self.spec.extra}

    def _endpoint(self, home: Path) -> Endpoint:
        """Returns the server, with what the other run folders' records leave of the budget."""
        spec = self.spec
        if spec.budget is not None:
            others = [Endpoint(spec, self.record(other)).spent for other in self.homes if other != home]
            tokens, money = spec.budget.tokens, spec.budget.money
            if tokens is not None:
                tokens = max(0, tokens - sum(spent.tokens for spent in others))
            if money is not None:
                money = max(0.0, money - sum(spent.money or 0.0 for spent in others))
            spec = spec.model_copy(update={"budget": Budget(tokens=tokens, money=money)})
        if home not in self._endpoints or self._endpoints[home].spec != spec:
            known = next(iter(self._endpoints.values()), None)  # what was sent for another run counts in the minute
            self._endpoints[home] = Endpoint(spec, self.record(home), limits=known.limits if known else None)
        return self._endpoints[home]

    def ask(
        self, home: Path, questions: Sequence[Question], by: str, take: Callable[[Question, Verdict], None]
    ) -> None:
        """Asks questions whose judgments a run folder keeps; each is taken once, as its reply comes."""
        prompt = JudgePrompt(self.judge, by)
        asked: dict[int, tuple[Question, int]] = {}
        paid: set[str] = set()

        def requests() -> Iterator[Request]:
            for question in questions:
                rendered = prompt.render(question.first, question.second)
                request = self._request(rendered, by, question.repeat)
                asked[id(request)] = (question, rendered.cut)
                yield request

        def answered(request: Request, reply: Reply) -> None:
            question, cut = asked[id(request)]
            take(question, self._verdict(reply, by, cut, paid=reply.key not in paid))
            paid.add(reply.key)

        self._endpoint(home).ask(list(requests()), answered)

    def _request(self, rendered: Rendered, by: str, repeat: int) -> Request:
        settings = self.judge.settings
        return Request(
            rendered.messages,
            max_tokens=1 if by == "logprobs" else settings.max_tokens,
            temperature=settings.temperature,
            seed=settings.seed + repeat if settings.temperature > 0 else None,
            top_logprobs=_TOP if by == "logprobs" else None,
            salt=str(repeat),
        )

    def _verdict(self, reply: Reply, by: str, cut: int, *, paid: bool) -> Verdict:
        """Reads a reply."""
        settings = self.judge.settings
        if reply.finish is None:
            verdict = Verdict("failed", reason=reply.error or "no answer")
        elif reply.finish == REJECTED:
            verdict = Verdict("rejected", reason=reply.error or "the server does not take it")
        elif reply.finish in ("refusal", "content_filter"):
            verdict = Verdict("refused", reason=reply.text or reply.error or reply.finish)
        elif by == "logprobs":
            none = Verdict("unparsed", reason=reply.error or "no log-probabilities came with this answer")
            verdict = from_tokens(reply.logprobs[0], settings) if reply.logprobs else none
        elif reply.error is not None:  # paid for and kept: asking again would bring the same
            verdict = Verdict("truncated" if reply.finish == "length" else "unparsed", reason=reply.error)
        else:
            verdict = parse(reply.text, settings, finish=reply.finish)
        if not paid:  # one reply that stands for several questions was paid for once
            return replace(verdict, prompt_tokens=0, completion_tokens=0, cost=None, seconds=0.0, cut=cut)
        return replace(
            verdict,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cost=reply.cost,
            seconds=reply.seconds,
            cut=cut,
        )
