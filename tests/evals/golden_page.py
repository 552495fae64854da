"""A small leaderboard with every section of the page, and the page as the text that a reader finds on it."""

import html
import json
import math
import re
from pathlib import Path

from .judged_fixtures import (
    answer,
    harness_samples,
    judged_score,
    pair,
    save_answers,
    save_judgments,
)
from .report_fixtures import make_run, score, share

FILE = Path(__file__).parent / "golden_page.txt"
ITEMS = 40
_ENDS = r"tr|p|li|h\d|option|title|dd|summary|caption|pre|label|figcaption|text|button"
PLAYERS = ("base", "sft", "ppo")


def golden_world(root: Path) -> Path:
    """A base model, two runs from it with a judge and a rule, a classifier, curves of rewards, a limit and damage."""
    answers = {name: [answer(i, f"{name} says {i} of it.") for i in range(4)] for name in PLAYERS}
    folders = {name: _run(root, name, place) for place, name in enumerate(PLAYERS)}
    for name, folder in folders.items():
        save_answers(folder, f"20-{name}-weights", answers[name], created="2026-01-03T00:00:00Z")
    outcomes = {("sft", "base"): [1.0, 1.0, 0.5, 1.0], ("ppo", "base"): [1.0, 0.0, 0.5, 0.0],
                ("ppo", "sft"): [0.0, 0.0, 1.0, 0.0]}  # fmt: skip
    for (name, other), won in outcomes.items():
        for i, outcome in enumerate(won):
            mine, theirs = ((f"20-{n}-weights", f"{n}/final", answers[n][i]) for n in (name, other))
            save_judgments(folders[name], pair(mine, theirs, outcome, reason=f"{name} is clearer on {i}."))
            if other == "base":
                rule = {
                    "judge": "longer",
                    "judge_version": "ruleversion",
                    "backend": "rules",
                    "judge_model": "rules.py",
                }
                save_judgments(folders[name], pair(mine, theirs, 1 - outcome, reason="", **rule))
        if other == "base":
            judged_score(folders[name], f"20-{name}-weights", won, "20-base-weights")
            rates = {"name": "win_rate", "value": 1 - sum(won) / 4, "stderr": 0.1, "n": 4, "higher_is_better": True}
            shown = {"kind": "judged", "judge": "longer", "backend": "rules", "opponents": ["20-base-weights"]}
            record = score("final", 20, "chat-longer", rates, weights_hash=f"20-{name}-weights", num_fewshot=None,
                           judge_version="ruleversion", detail=shown | {"leaderboard": True})  # fmt: skip
            with (folders[name] / "scores.jsonl").open("a") as lines:
                lines.write(json.dumps(record) + "\n")
    classes = [
        share(30, 40, f"{kind}/{label}") for label in ("tides", "yeast") for kind in ("precision", "recall", "f1")
    ]
    detail = {"confusion": {"labels": ["tides", "yeast"], "counts": [[30, 10], [5, 55]]}}
    topics = score("final", 9, "topics", share(85, 100, "accuracy"), *classes, weights_hash="cls", detail=detail,
                   notes=["always answering 'yeast' is right on 60.0%"])  # fmt: skip
    damaged = make_run(root / "cls", "cls", [topics], stage="classify")
    with (damaged / "scores.jsonl").open("a") as lines:
        lines.write("not json\n")
    points = [{"n": n, "kl": math.log(n) - (n - 1) / n, "reward": n / 10, "gold": n / 20} for n in (1, 2, 4)]
    (root / "bon").mkdir()
    (root / "bon/best_of_n.json").write_text(json.dumps({"reward": "rm", "gold": "check", "points": points}))
    return root


def _run(root: Path, name: str, place: int) -> Path:
    origin = {"name": "base", "weights_hash": "20-base-weights", "recipe_hash": "recipe-base"} if place else None
    records = []
    for step in (10, 20):
        weights, hits = f"{step}-{name}-weights", 12 + 10 * place + step // 5
        bits = {"name": "bits_per_byte", "value": 1.3 - place / 5, "stderr": 0.012, "n": 64, "higher_is_better": False}
        records += [score(f"checkpoint-{step}", step, "arc", share(hits, ITEMS), weights_hash=weights)]
        records += [score(f"checkpoint-{step}", step, "wiki", bits, weights_hash=weights)]
    few = score("checkpoint-20", 20, "piqa", share(5, 10), weights_hash=f"20-{name}-weights", limit=10, num_fewshot=5)
    folder = make_run(root / name, name, [*records, few], stage="pretrain" if not place else name, parent=origin,
                      final=f"20-{name}-weights", losses=20)  # fmt: skip
    for record in records[::2]:
        right = round(record["metrics"][0]["value"] * ITEMS)
        harness_samples(folder, record, [int(i < right) for i in range(ITEMS)])
    if name == "ppo":
        steps = ((10, 0.0, 0.1, 0.1), (15, 1.0, 0.5, 0.4), (20, 4.0, 0.9, 0.2))
        with (folder / "log.jsonl").open("a") as lines:
            for step, kl, reward, gold in steps:
                line = {"step": step, "kl": kl, "reward": reward, "rewards/gold/mean": gold}
                lines.write(json.dumps(line) + "\n")
    return folder


def page_text(page: str) -> str:
    """Returns what a reader finds on a page: a line for each row of a table, paragraph and label of a chart."""
    body = re.sub(r"<(style|script)\b.*?</\1>", "", page[page.index("<body>") :], flags=re.DOTALL)
    body = re.sub(r'<g class="grid">.*?</g>', "", body, flags=re.DOTALL)  # the axes of charts
    body = re.sub(r"\s+", " ", re.sub(r'title="([^"]*)"[^>]*>', r">(\1) ", body))
    body = re.sub(r"</t[dh]>", " | ", body)
    body = re.sub(rf"</({_ENDS})>|<(div|tbody|ul)\b[^>]*>", "\n", body)
    body = re.sub(r"<(span|strong|sub|sup)\b[^>]*>", " ", body)
    texts = (html.unescape(re.sub(r"<[^>]+>", "", line)) for line in body.split("\n"))
    lines = (re.sub(r"\s+", " ", text).strip(" |") for text in texts)
    return "\n".join(line for line in lines if line) + "\n"
