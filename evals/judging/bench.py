"""A judge opened for work: its version, and how it is asked, whatever its backend."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...data_tools.files import hash_json
from ..answers import AnswerSet
from ..checkpoints import model_hash
from ..errors import SuiteError
from ..judges import Judge
from . import values as judge_values
from .endpoint import EndpointJudge
from .lineage import refuse_own_reward
from .model import ModelJudge
from .parse import PARSER, Verdict
from .prompt import JudgePrompt
from .questions import Question

_METHOD = 2  # raise when a change here changes verdicts
Take = Callable[[Question, Verdict], None]


class Bench:
    """One judge at work for one entry of a suite.

    Args:
        judge: Who is asked.
        name: What its records are called.
        homes: The run folders that keep its judgments.
        device: Where a model in this process runs.
    """

    def __init__(self, judge: Judge, name: str, homes: Sequence[Path], device: str | None = None):
        self.judge, self.name, self.homes, self.device = judge, name, list(homes), device
        self._versions: dict[str, str] = {}

    def check(self) -> None:
        """Finds what is wrong before anything is sent: a prompt that does not render, a model that is not there.

        Raises:
            InputError: The judge cannot work.
        """
        settings = self.judge.settings
        for by in ("logprobs", "text") if settings.answer_by == "auto" else (settings.answer_by,):
            if settings.backend in ("endpoint", "model"):
                JudgePrompt(self.judge, by)
        if settings.backend == "rules":
            judge_values.rule_values(self.judge)
        local = settings.backend in ("model", "reward") and settings.model.startswith((".", "/", "~"))
        if local and not Path(settings.model).is_dir():
            raise SuiteError(f"there is no model {settings.model}", where=f"judge {self.judge.name}")

    def refuse(self, candidate: AnswerSet) -> None:
        """Refuses a candidate that this judge cannot be impartial about.

        Raises:
            SuiteError: It is a reward model that trained the candidate.
        """
        if self.judge.settings.backend == "reward":
            refuse_own_reward(self.judge, candidate)

    @cached_property
    def _endpoint(self) -> EndpointJudge:
        return EndpointJudge(self.judge, self.name, self.homes)

    @cached_property
    def _model(self) -> ModelJudge:
        return ModelJudge(self.judge, self.device)

    @cached_property
    def _values(self) -> judge_values.Values:
        if self.judge.settings.backend == "rules":
            return judge_values.rule_values(self.judge)
        return judge_values.RewardValues(self.judge, self.device)

    def known_version(self) -> str | None:
        """Returns the version without asking anybody; None if the server has still to be probed."""
        by = self._endpoint.known_way() if self.judge.settings.backend == "endpoint" else self._way
        return None if by is None else self._version(by)

    @cached_property
    def way(self) -> str:
        """Returns how the judge answers, ``logprobs`` or ``text``; empty for values."""
        return self._endpoint.way() if self.judge.settings.backend == "endpoint" else self._way

    @property
    def _way(self) -> str:
        settings = self.judge.settings
        if settings.backend in ("reward", "rules"):
            return ""
        return "logprobs" if settings.answer_by == "auto" else settings.answer_by

    @cached_property
    def version(self) -> str:
        """Returns the hash of everything that decides a verdict, but the order and the number of repeats."""
        return self._version(self.way)

    def _version(self, by: str) -> str:
        if by not in self._versions:
            self._versions[by] = self._hash(by)
        return self._versions[by]

    def _hash(self, by: str) -> str:
        settings = self.judge.settings
        decides: dict[str, Any] = {"method": _METHOD, "kind": settings.kind, "backend": settings.backend}
        if settings.backend == "rules":
            return hash_json(decides | {"rule": judge_values.rule_identity(settings.rule or "")})
        decides["model"] = self._identity
        if settings.backend == "reward":
            return hash_json(decides | {"reader": judge_values.READER})
        if by == "text" or settings.backend == "endpoint":  # else no reply is read: what was judged stands
            decides["parser"] = PARSER
        keys = {"labels", "scale", "reference", "system", "max_characters"}
        if by == "text":
            keys |= {"pattern", "temperature", "max_tokens", "extra", *(("seed",) if settings.temperature > 0 else ())}
        if settings.backend == "endpoint":  # a server may heed these even where it is asked for one label
            keys |= {name for name in ("temperature", "extra") if getattr(settings, name)}
        said = settings.model_dump(mode="json", include=keys)
        return hash_json(decides | {"prompt": self.judge.prompt, "by": by, "settings": said})

    @cached_property
    def _identity(self) -> Any:
        settings = self.judge.settings
        if settings.backend == "endpoint":
            return [settings.model, settings.base_url.rstrip("/")]
        folder = Path(settings.model)
        if not folder.is_dir():
            return settings.model
        return model_hash(folder)

    @property
    def model_name(self) -> str:
        """Returns what judgments call the model: its name at the endpoint, its folder, or the rule."""
        settings = self.judge.settings
        return settings.rule or "" if settings.backend == "rules" else settings.model

    def ask(self, home: Path, questions: Sequence[Question], take: Take) -> None:
        """Asks questions whose judgments one run folder keeps; each is taken once.

        Raises:
            PosttrainError: The judge cannot work; what was taken before stands.
        """
        backend = self.judge.settings.backend
        if backend == "endpoint":
            self._endpoint.ask(home, questions, self.way, take)
        elif backend == "model":
            self._model.ask(questions, self.way, take)
        else:
            judge_values.ask(self.judge, self._values, questions, take)

    def close(self) -> None:
        """Lets a model in this process go."""
        import gc

        held = [self.__dict__.pop(name, None) for name in ("_model", "_values")]
        if any(part is not None for part in held) and self.judge.settings.backend != "rules":
            import torch

            held.clear()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
