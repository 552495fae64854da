"""How far a reward model and a language model agree with published preference labels.

    python benchmarks/published/agreement.py DATA --reward RUN --model RUN

DATA holds ``llmbar/*.json`` (Zeng et al. 2024, arXiv:2310.07641; human labels),
``hhh_alignment/hhh_alignment_eval.json`` (Askell et al. 2021, arXiv:2112.00861; human labels) and
``alpacaeval1_gpt4_labels/*.json.gz`` (AlpacaEval 1; labels by GPT-4). Prints a Markdown table: the share of the labels
that a judge names, ties half, with Wilson's interval, beside what the longer answer gets (the shorter one gets the
rest, a coin .5); and Cohen's kappa over those that it decided.
"""

import argparse
import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from posttrain.data_tools.files import hash_json
from posttrain.evals.answers import Answer, AnswerSet
from posttrain.evals.judges import JudgingSpec, load_judges
from posttrain.evals.judging.backends import OpenJudge, open_judges
from posttrain.evals.judging.parse import Verdict
from posttrain.evals.judging.questions import Pair, questions_of
from posttrain.evals.stats.bootstrap import kappa
from posttrain.evals.stats.intervals import wilson

Labelled = tuple[str, str, str, float]  # prompt, two answers, and how much the first is preferred
HERE = Path(__file__).parent


def read_llmbar(folder: Path) -> Iterator[tuple[str, list[Labelled]]]:
    """Yields each subset; the label is the number of the better output."""
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text())
        yield f"LLMBar {path.stem}", [(r["input"], r["output_1"], r["output_2"], float(r["label"] == 1)) for r in rows]


def read_hhh(path: Path) -> Iterator[tuple[str, list[Labelled]]]:
    """Yields all rows, which come wrapped in another judge's prompt; which side is preferred is drawn."""
    rng, rows = Random(0), []
    for row in json.loads(path.read_text()):
        texts = [row[f"{name}_instruction"] for name in ("chosen", "rejected")]
        (prompt, chosen), (_, rejected) = (_unwrapped(text) for text in texts)
        rows.append((prompt, chosen, rejected, 1.0) if rng.random() < 0.5 else (prompt, rejected, chosen, 0.0))
    yield "HHH alignment", rows


def _unwrapped(text: str) -> tuple[str, str]:
    _, _, rest = text.partition("###The instruction to evaluate:")
    prompt, _, rest = rest.partition("###Response to evaluate:")
    return prompt.strip(), rest.partition("###Score Rubrics:")[0].strip()


def read_alpaca_eval(folder: Path) -> Iterator[tuple[str, list[Labelled]]]:
    """Yields the labels for each model, the other answer being text_davinci_003's; 1 is the first, 0 and 1.5 ties."""
    for path in sorted(folder.glob("*.json.gz")):
        rows = []
        for row in json.loads(gzip.decompress(path.read_bytes())):
            if row["preference"] is None:
                continue  # GPT-4 gave no verdict
            value = float(row["preference"])
            preferred = 0.5 if value in (0.0, 1.5) else float(value < 1.5)
            rows.append((row["instruction"], row["output_1"], row["output_2"], preferred))
        yield f"AlpacaEval 1, {path.name.split('.annotations')[0]}", rows


def answer_sets(rows: Sequence[Labelled], home: Path) -> Pair:
    """Returns the first and the second answers as two sets, a prompt for each row."""
    sides = []
    for side in (1, 2):
        answers = []
        for number, row in enumerate(rows):
            key, text = hash_json([number, row[0]]), (row[side],)
            answers.append(Answer(str(number), key, None, (row[0],), None, 0, text, text, ("stop",), None, None, None))
        sides.append(AnswerSet("labels", str(side), None, str(side), "labels", "", home, tuple(answers)))
    return Pair(sides[0], sides[1], home)


def ask(judge: OpenJudge, pair: Pair) -> dict[str, float | None]:
    """Returns how much a judge prefers each first answer, by the prompt's key; None where an order gave no verdict."""
    said: dict[str, list[float | None]] = {answer.prompt_key: [] for answer in pair.candidate.answers}

    questions = {question.key: question for question in questions_of(judge.spec, pair)}

    def take(verdicts: Mapping[str, Verdict]) -> None:
        for key, verdict in verdicts.items():
            value, question = verdict.preference, questions[key]
            turned = value is not None and question.order == "candidate-second"
            said[question.answer.prompt_key].append(1 - value if turned and value is not None else value)

    judge.backend(pair.home)(list(questions.values()), (), take)
    found: dict[str, float | None] = {}
    for key, values in said.items():
        known = [value for value in values if value is not None]
        found[key] = sum(known) / len(known) if known and len(known) == len(values) else None
    return found


def side(preference: float) -> str:
    return "first" if preference > 0.5 else "second" if preference < 0.5 else "tie"


def line(name: str, judge: str, labels: Sequence[float], preferences: Sequence[float | None]) -> str:
    """Returns a row of the table; labels that are ties are left out, as is what the judge did not decide."""
    both = [(label, said) for label, said in zip(labels, preferences, strict=True) if label != 0.5 and said is not None]
    right = sum(0.5 if said == 0.5 else float((said > 0.5) == (label > 0.5)) for label, said in both)
    if not both:
        return f"| {name} | {judge} | 0 | | | |"
    found = wilson(right, len(both))
    agreed = kappa([side(label) for label, _ in both], [side(said) for _, said in both])
    spread = f"{agreed.kappa:.3f} [{agreed.low:.3f}, {agreed.high:.3f}]" if agreed.low is not None else "none"
    missing = sum(said is None for said in preferences)
    share = f"{right / len(both):.3f} [{found.low:.3f}, {found.high:.3f}]"
    return f"| {name} | {judge} | {len(both)} | {missing} | {share} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--reward", help="a reward model's folder")
    parser.add_argument("--model", help="a language model's folder")
    parser.add_argument("--limit", type=int, help="rows of each set")
    options = parser.parse_args()
    entries = {}
    if options.reward:
        entries["reward model"] = JudgingSpec(judge="reward", prompts="labels", pairs="all", model=options.reward)
    if options.model:
        short = str(HERE / "short-judge")
        entries["language model"] = JudgingSpec(judge=short, prompts="labels", pairs="all", model=options.model)
    judges = {name: open_judges(name, load_judges(entry), [Path()])[0] for name, entry in entries.items()}
    sets = [*read_llmbar(options.data / "llmbar")]
    sets += read_hhh(options.data / "hhh_alignment" / "hhh_alignment_eval.json")
    sets += read_alpaca_eval(options.data / "alpacaeval1_gpt4_labels")
    print("| labels | judge | n | unread | agreement, 95% | kappa, 95% |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in sets:
            rows = rows[: options.limit]
            pair = answer_sets(rows, Path(folder))
            labels = [row[3] for row in rows]
            longer = [0.5 if len(row[1]) == len(row[2]) else float(len(row[1]) > len(row[2])) for row in rows]
            print(line(name, "longer answer", labels, longer))
            for judge, opened in judges.items():
                said = ask(opened, pair)
                print(
                    line(name, judge, labels, [said[answer.prompt_key] for answer in pair.candidate.answers]),
                    flush=True,
                )


if __name__ == "__main__":
    main()
