"""The data tools that need more than rows: models that are asked, tasks whose items are looked for."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import Field, PositiveFloat

from ..data_tools.ask import ANSWERS, AnswersSpec, answer
from ..data_tools.compare_tokenizers import Named
from ..data_tools.decontaminate import Benchmarks, DecontaminateSpec
from ..data_tools.overlap import Item
from ..data_tools.progress import say_now
from ..data_tools.row_tool import Counts, Plan
from ..data_tools.spec import Count
from ..data_tools.stats import StatsSpec
from ..data_tools.tool import Names, Source, Sources, Tool
from ..data_tools.tool_report import ToolReport
from .tokenizer_tools import load_tokenizers, tokenizer_hashes


class Answers(AnswersSpec):
    """Lets a model answer prompts and writes the conversations to ``answers.jsonl``, for the stage sft.

    Run again after a kill, it goes on where it was.
    """

    def run(self, output_dir: Path) -> str:
        """Collects the answers, each on the disk before the next is waited for; returns how many there are.

        Raises:
            PosttrainError: The prompts cannot be read, the model cannot be asked, or too few answers can be used.
        """
        from ..evals.checkpoints import model_hash
        from ..evals.models import load_language_model
        from ..evals.runs import locate

        report = answer(
            self,
            output_dir,
            loader=lambda name: load_language_model(str(locate(name))),
            identify=lambda name: model_hash(locate(name)),
        )
        dropped = f", dropped: {report.reasons()}" if report.dropped else ""
        return f"{output_dir / ANSWERS}: {report.kept} answers{dropped}"


class Decontaminate(DecontaminateSpec):
    """Takes the rows out of a training set that hold items of tests, and says which, why and where.

    The items come from tasks and suites, as they are asked there, and from files. Writes a clean file for each source,
    ``evidence.log``, ``report.json`` and ``report.html``.
    """

    tasks: Names = Field([])
    """Tasks of lm-eval or of your own, as a suite names them."""
    suites: Names = Field([])
    """Suites, by name or file."""
    data_dir: str | None = None
    """A folder of benchmarks to read in place of the tasks' own data."""
    references: dict[str, str] = Field({})
    """Folders that `@name` stands for in the suites, as in `{world: runs/world}`."""

    def benchmarks(self) -> Benchmarks:
        """Returns the items of files and of tasks.

        Raises:
            PosttrainError: They cannot be read.
        """
        return {**super().benchmarks(), **self._items_of_tasks()}

    def _items_of_tasks(self) -> dict[str, list[Item]]:
        from ..evals.models import hub_access
        from ..evals.score import define_all
        from ..evals.suite_files import load_suite, suite_of_tasks

        places = {name: Path(folder) for name, folder in self.references.items()}
        folder = Path(self.data_dir) if self.data_dir else None
        suites = [load_suite(name, places, data_dir=folder) for name in self.suites]
        if self.tasks:
            suites.append(suite_of_tasks(self.tasks, data_dir=folder))
        found: dict[str, list[Item]] = {}
        for suite in suites:
            if suite.left_out:
                print(f"{suite.name}: {suite.data_dir} does not hold {', '.join(suite.left_out)}")
            for task in define_all(suite):
                with hub_access(suite.offline):
                    items = task.items()
                title = task.spec.title
                if items is None:
                    if not task.needs_model:  # a mean of other tasks, whose items are looked for there
                        continue
                    print(f"{suite.name}: {title} has no items that could be looked for")
                else:
                    found[title if title not in found else f"{suite.name}/{title}"] = items
        return found


class Stats(StatsSpec):
    """Measures rows: how many, how long in characters, words, turns and tokens, and how many say the same.

    Writes ``report.json`` and ``report.html``.
    """

    tokenizers: Names = Field([])
    """Runs, folders or Hub ids whose tokenizers count tokens, so that they are compared on these rows; the page says
    how much of each vocabulary the rows have."""
    items: Sources | None = None
    """Files of test items that are looked for in the rows, as `decontaminate` does."""
    tasks: Names = Field([])
    """Tasks whose items are looked for likewise."""
    suites: Names = Field([])
    """Suites, likewise."""
    data_dir: str | None = None
    """A folder of benchmarks to read in place of the tasks' own data."""

    def open(self) -> list[Named]:
        """Loads the tokenizers, each by a name as short as tells them apart."""
        return load_tokenizers(self.tokenizers)

    @cached_property
    def search(self) -> Decontaminate | None:
        """What looks for test items, if any are named."""
        named = {"items": self.items, "tasks": self.tasks, "suites": self.suites}
        if not any(named.values()):
            return None
        return Decontaminate(sources=self.sources, remove=False, data_dir=self.data_dir, **named)

    def identity(self) -> Any:
        """Returns the hashes of the tokenizers' files and of the test items, and what else the figures depend on."""
        return [
            super().identity(),
            *tokenizer_hashes(self.tokenizers),
            self.search and self.search.identity(),
        ]

    def plan(self, folder: Path) -> Plan:
        """Looks for test items, too, where they are named."""
        plan = super().plan(folder)
        if self.search is None:
            return plan
        found = self.search.plan(folder / "items")

        def add(report: ToolReport, counts: Mapping[str, Counts]) -> ToolReport:
            return found.add(plan.add(report, counts), counts)

        return Plan(plan.decider, add)


class BestOfN(Tool):
    """Draws n answers to held-out prompts and works out what the best of 1, 2, 4, …, n is worth by two rewards.

    Writes ``best_of_n.json``, which the report of the same pipeline draws.
    """

    policy: str
    """A model's folder or `@step`."""
    reward: str
    """What chooses: a reward model's folder or `@step`, or a function `module:name` or `file.py:name`."""
    prompts: Source
    """Held-out prompts."""
    gold: str | None = None
    """What the choice is checked by, likewise."""
    n: Annotated[int, Field(ge=2)] = 64
    """Answers to each prompt."""
    limit: Count | None = None
    """Take the first so many prompts only."""
    temperature: PositiveFloat = 1.0
    """Of sampling."""
    max_new_tokens: Count = 128
    """Tokens of an answer at most."""
    seed: int = 0
    """Of sampling."""
    batch_size: Count = 64
    """Answers drawn at a time."""

    def run(self, output_dir: Path) -> None:
        """Samples and scores; batches that an earlier call has drawn are not drawn again.

        Raises:
            DataError: The prompts cannot be read.
            InputError: A reward cannot be found or used.
            EvalError: The policy cannot be loaded, or is no language model.
        """
        from ..data_tools.generate import Sampling, ends_of
        from ..evals import best_of_n
        from ..evals.checkpoints import model_hash
        from ..evals.models import load_model
        from ..evals.runs import locate
        from .rewards import for_each, load_terms, name_of
        from .schema import RewardSpec

        reward, gold = (
            RewardSpec.model_validate({"function" if ":" in name else "model": name}) if name else None
            for name in (self.reward, self.gold)
        )
        assert reward is not None, "the arguments have been checked"
        folder = locate(self.policy)
        loaded = load_model(str(folder))
        recipe: Any = SimpleNamespace(rewards=[reward], gold=gold)
        args = SimpleNamespace(device=loaded.model.device, per_device_eval_batch_size=self.batch_size)
        terms, _ = load_terms(recipe, loaded.tokenizer, args, ends_of(loaded.model, loaded.tokenizer))
        names: dict[str, Any] = {
            "policy": Path(self.policy).name if Path(self.policy).is_dir() else self.policy,
            "policy_model": model_hash(folder),
            "reward": name_of(reward),
            "gold": name_of(gold) if gold else None,
        }
        best_of_n.run(
            output_dir,
            loaded,
            best_of_n.read_prompts(self.prompts, loaded, self.limit),
            self.n,
            Sampling(self.max_new_tokens, self.temperature, seed=self.seed, batch_size=self.batch_size),
            reward=for_each(terms[0], names["reward"]),
            gold=for_each(terms[1], names["gold"]) if gold else None,
            names=names,
            say=say_now,
        )
