"""Votes: blind, balanced, never lost, and from nobody but the person at this machine."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from posttrain.chat_templates.errors import InputError, PosttrainError
from posttrain.evals.answers import Answer
from posttrain.evals.arena import Arena, choose, serve
from posttrain.evals.arena.page import MOST_CHARACTERS, readable
from posttrain.evals.arena.server import open_server
from posttrain.evals.arena.votes import Votes
from posttrain.evals.judging.judgments import Judgment, JudgmentStore

from .judged_fixtures import answer, save_answers
from .report_fixtures import make_run

SCRIPT = Path(__file__).with_name("arena_script.py")


def models(root: Path, prompts: int, names: tuple[str, ...] = ("base", "sft", "dpo")) -> list[Path]:
    """Runs whose answers differ in everything but their form."""
    folders = []
    for name in names:
        folder = make_run(root / name, name, [])
        save_answers(
            folder, f"{name}-weights", [answer(i, f"Answer {i} in the manner of {name}.") for i in range(prompts)]
        )
        folders.append(folder)
    return folders


def arena(folders: list[Path], voter: str = "anna", seed: int = 0) -> Arena:
    return Arena(choose(folders, None), Votes(folders, voter), seed)


def votes(folders: list[Path]) -> list[Judgment]:
    return [judgment for folder in folders for judgment in JudgmentStore(folder).load()]


def texts(question: dict[str, Any]) -> tuple[str, str, str]:
    return tuple(question["turns"][0][side]["text"] for side in ("user", "left", "right"))


def vote_all(table: Arena, choice: str = "left", most: int = 10**6) -> list[dict[str, Any]]:
    asked = []
    question = table.question()
    while "id" in question and len(asked) < most:
        asked.append(question)
        question = table.vote(question["id"], choice)
    return asked


def test_ctrl_c_as_soon_as_the_page_is_announced_ends_it_as_at_any_other_moment(tmp_path: Path):
    said = []

    def progress(line: str) -> None:
        said.append(line)
        if line.startswith("vote at"):
            raise KeyboardInterrupt

    assert serve(models(tmp_path, 2), voter="anna", progress=progress) == 0
    assert said[-1].endswith("pairs voted on")


def test_a_vote_becomes_a_judgment_of_the_answers_that_were_shown(tmp_path: Path):
    folders = models(tmp_path, 8)
    table = arena(folders)
    for choice, left_wins in (("left", 1.0), ("right", 0.0), ("tie", 0.5)) * 4:
        question = table.question()
        _, left, right = texts(question)
        table.vote(question["id"], choice)
        last = max(votes(folders), key=lambda vote: vote.created)
        assert (last.judge, last.backend, last.judge_model, last.status) == ("human", "human", "anna", "judged")
        own = last.candidate.removesuffix("-weights")
        on_left = f"of {own}." in left
        assert f"of {own}." in (left if on_left else right)
        assert last.order == ("candidate-first" if on_left else "candidate-second")
        assert last.preference == (left_wins if on_left else 1 - left_wins)
        assert last in JudgmentStore(tmp_path / own).load()
        assert (last.candidate_length, last.opponent_length)[not on_left] == len(left)


def test_every_pair_comes_once_and_sides_are_balanced_at_every_moment(tmp_path: Path):
    folders = models(tmp_path, 12)
    table = arena(folders)
    asked = vote_all(table)
    assert len({question["id"] for question in asked}) == len(asked) == table.total == 36
    assert "id" not in table.question()
    pairs: Counter[tuple[str, str]] = Counter()
    straight: Counter[tuple[str, str]] = Counter()
    prompts: dict[str, list[int]] = {}
    for number, vote in enumerate(sorted(votes(folders), key=lambda vote: vote.created), start=1):
        pair = (vote.candidate, str(vote.opponent))
        pairs[pair] += 1
        straight[pair] += 1 if vote.order == "candidate-first" else -1
        prompts.setdefault(vote.prompt_id, []).append(1 if vote.order == "candidate-first" else -1)
        assert abs(straight[pair]) <= 1
        assert max(pairs.values()) - min(pairs[p] for p in pairs) <= 1 or number < 3
    assert set(pairs.values()) == {12}
    assert all(abs(sum(sides)) <= 1 for sides in prompts.values())


def test_the_order_is_the_seeds(tmp_path: Path):
    folders = models(tmp_path, 10)
    orders = [
        [texts(q) for q in vote_all(arena(models(tmp_path / str(i), 10), seed=seed))]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert arena(folders).question()["id"] == arena(folders).question()["id"]


def test_nothing_that_the_page_is_given_names_a_model(tmp_path: Path):
    folders = models(tmp_path, 3, ("secret-one", "secret-second"))
    for folder in folders:
        save_answers(folder, f"{folder.name}-weights", [answer(i, f"{len(folder.name)} {i}") for i in range(3)])
    question = arena([*folders]).question()
    for name in ("turns", "said"):
        question.pop(name)
    assert "secret" not in json.dumps(question)
    assert "weights" not in json.dumps(question)


def test_undo_asks_the_same_again_and_leaves_one_vote(tmp_path: Path):
    folders = models(tmp_path, 5)
    table = arena(folders)
    vote_all(table, most=3)
    first = table.question()
    table.vote(first["id"], "left")
    again = table.undo()
    assert texts(again) == texts(first)
    assert (again["done"], again["undo"]) == (3, True)
    assert len(votes(folders)) == 3
    table.vote(again["id"], "right")
    assert len(votes(folders)) == 4
    assert max(votes(folders), key=lambda vote: vote.created).preference in (0.0, 1.0)
    # Back to the start, in a session that cast none of them; then there is nothing more.
    later = arena(folders)
    for left in (3, 2, 1, 0):
        assert later.undo()["done"] == left
    assert votes(folders) == []
    assert "no vote" in later.undo()["said"]
    assert len(vote_all(later)) == 15 == len(votes(folders))


def test_a_skipped_pair_comes_again_at_the_end(tmp_path: Path):
    folders = models(tmp_path, 3, ("base", "sft"))
    table = arena(folders)
    skipped = table.question()["id"]
    assert table.skip(skipped)["skipped"] == 1
    rest = [question["id"] for question in vote_all(table, "tie")]
    assert rest[-1] == skipped
    assert len(set(rest)) == 3
    assert table.question()["skipped"] == 0


def test_skipping_all_goes_round(tmp_path: Path):
    table = arena(models(tmp_path, 3, ("base", "sft")))
    seen = []
    for _ in range(6):
        seen.append(table.question()["id"])
        table.skip(seen[-1])
    assert seen[:3] == seen[3:]
    assert len(set(seen)) == 3


def test_a_second_vote_on_a_pair_changes_nothing(tmp_path: Path):
    folders = models(tmp_path, 5)
    table = arena(folders)
    question = table.question()
    table.vote(question["id"], "left")
    assert "already decided" in table.vote(question["id"], "right")["said"]
    assert len(votes(folders)) == 1
    with pytest.raises(InputError, match="left, right or tie"):
        table.vote(table.question()["id"], "both")


def test_votes_of_others_count_for_the_order_and_are_asked_again(tmp_path: Path):
    folders = models(tmp_path, 4)
    vote_all(arena(folders, "anna"), most=5)
    other = arena(folders, "ben")
    assert (other.done, other.total) == (0, 12)
    assert "among 3 pairs of models mostly takes about 259 where 6 of 10 go one way" in other.question()["suffice"]
    vote_all(other)
    assert Counter(vote.judge_model for vote in votes(folders)) == {"anna": 5, "ben": 12}
    assert len({vote.judge_version for vote in votes(folders)}) == 2


def test_identical_answers_are_counted_and_not_asked(tmp_path: Path):
    folders = models(tmp_path, 4, ("base", "sft"))
    same = [answer(i, "The same." if i < 3 else f"Not {name}.") for name in ("x",) for i in range(4)]
    for folder in folders:
        (folder / "scores.jsonl").write_text("")
        save_answers(folder, f"{folder.name}-weights", [*same[:3], answer(3, f"As {folder.name}.")])
    table = arena(folders)
    assert (table.total, table.question()["identical"]) == (1, 3)
    (folders[0] / "scores.jsonl").write_text("")
    save_answers(folders[0], "base-weights", [*same[:3], answer(3, "As sft.")])
    with pytest.raises(InputError, match="all 4 pairs of answers are identical"):
        arena(folders)


def test_models_are_compared_on_the_prompts_they_share(tmp_path: Path):
    folders = models(tmp_path, 6)
    (folders[0] / "scores.jsonl").write_text("")
    save_answers(folders[0], "base-weights", [answer(i, "Only two.") for i in (4, 5)])
    assert arena(folders).total == 6 + 2 + 2


def test_answers_under_other_settings_are_not_mixed(tmp_path: Path):
    folders = models(tmp_path, 3)
    for name, folder in zip(("base", "sft"), folders[:2], strict=True):  # asked again, for longer answers; one is not
        longer = [answer(i, f"Longer {i} {name}.") for i in range(3)]
        save_answers(folder, f"{name}-weights", longer, task_hash="new", created="2026-01-02T00:00:00Z")
    sets = choose(folders, None)
    assert [found.task_hash for found in sets] == ["chathash0"] * 3  # all have answered those
    sets = choose(folders[:2], None)
    assert [found.task_hash for found in sets] == ["new", "new"]
    assert all(given.texts[0].startswith("Longer") for found in sets for given in found.answers)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folders: (folders[0] / "scores.jsonl").write_text(""), "only one model"),
        (lambda folders: [(f / "scores.jsonl").write_text("") for f in folders], "posttrain score"),
        (lambda folders: folders.append(Path("/nowhere")), "no such run folder"),
    ],
)
def test_too_little_to_vote_on_is_one_clear_error(tmp_path: Path, break_it: Any, says: str):
    folders = models(tmp_path, 2, ("base", "sft"))
    break_it(folders)
    with pytest.raises(InputError, match=says):
        arena(folders)


def test_a_prompt_set_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="did you mean 'chat'"):
        choose(models(tmp_path, 2, ("base", "sft")), "chart")


def test_one_voter_has_one_arena_at_a_time(tmp_path: Path):
    folders = models(tmp_path, 2, ("base", "sft"))
    with Votes(folders, "anna").alone(), Votes(folders, "ben").alone(), pytest.raises(PosttrainError) as caught:
        Votes(folders, "anna").alone().__enter__()
    assert "already open for 'anna'" in str(caught.value)


def test_what_could_deceive_is_made_visible():
    shown = readable("a\x00b\x1b[2Jc\u202edcba\r\nnext\u200b\ud800 \U0001f468\u200d\U0001f469 עברית\tend")["text"]
    assert shown == "a␀b␛[2Jc⟨U+202E⟩dcba\nnext⟨U+200B⟩⟨U+D800⟩ \U0001f468\u200d\U0001f469 עברית\tend"
    long = readable("x" * 10**6)
    assert (len(long["text"]), long["cut"]) == (MOST_CHARACTERS, 10**6)
    assert readable("x" * MOST_CHARACTERS)["cut"] is None


def test_answers_with_fewer_turns_or_none_are_shown(tmp_path: Path):
    folders = models(tmp_path, 1, ("base", "sft"))
    turns: dict[str, Any] = {"turns": ("One?", "Two?"), "references": ("Ref.",), "prompt_key": "two"}
    for folder, said in zip(folders, [("a", "b"), ("c",)], strict=True):
        (folder / "scores.jsonl").write_text("")
        one: Answer = replace(answer(0, ""), texts=said, raw=said, finish=("stop",) * len(said), **turns)
        save_answers(folder, f"{folder.name}-weights", [one])
    first, second = arena(folders).question()["turns"]
    assert {first["left"]["text"], first["right"]["text"]} == {"a", "c"}
    assert {second["left"]["text"], second["right"]["text"]} == {"b", ""}
    assert (first["reference"]["text"], second["reference"]) == ("Ref.", None)


class Client:
    """A browser, or someone who would like to pass for one."""

    def __init__(self, url: str):
        self.parts = urlsplit(url)

    def ask(
        self, place: str = "", body: Any = None, method: str | None = None, path: str | None = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection(self.parts.hostname or "", self.parts.port or 0, timeout=60)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        target = f"{self.parts.path}{place}" if path is None else path
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), target, content, sent)
            reply = connection.getresponse()
            text = reply.read()
            kind = reply.headers.get_content_type()
            return reply.status, json.loads(text) if kind == "application/json" else text.decode(), dict(reply.headers)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[list[Path], Client]]:
    folders = models(tmp_path, 4)
    with open_server(arena(folders), title="<chat>") as server:
        yield folders, Client(server.url)


def test_the_page_votes_by_its_own_address(served: tuple[list[Path], Client]):
    folders, client = served
    status, page, headers = client.ask()
    assert status == 200
    assert "&lt;chat&gt;" in page
    assert "in the manner of" not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    _, question, _ = client.ask("question")
    status, after, _ = client.ask(
        "vote", {"id": question["id"], "choice": "tie"}, Host=f"localhost:{client.parts.port}"
    )
    assert (status, after["done"]) == (200, 1)
    assert client.ask("skip", {"id": after["id"]})[1]["skipped"] == 1
    assert client.ask("undo", {})[1]["done"] == 0
    assert votes(folders) == []


@pytest.mark.parametrize(
    ("attempt", "status"),
    [
        ({"path": "/"}, 403),
        ({"path": "/question"}, 403),
        ({"path": "/guess/question"}, 403),
        ({"path": "/%ff/question"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "[::1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"body": b"{torn"}, 400),
        ({"body": b"[" * 5000}, 400),
        ({"body": b"[]"}, 400),
        ({"body": {"id": 1, "choice": ["left"]}}, 400),
        ({"body": b"{" + b" " * 20_000 + b"}"}, 413),
        ({"place": "elsewhere"}, 404),
    ],
)
def test_a_stranger_neither_reads_nor_votes(served: tuple[list[Path], Client], attempt: dict[str, Any], status: int):
    folders, client = served
    good = {"id": client.ask("question")[1]["id"], "choice": "left"}
    answered, said, _ = client.ask(**({"place": "vote", "body": good} | attempt))
    assert answered == status
    assert set(said) == {"error"}
    assert votes(folders) == []
    assert client.ask("vote", good)[0] == 200  # and the one who may is not disturbed


def test_other_methods_and_machines_are_refused(served: tuple[list[Path], Client], tmp_path: Path):
    _, client = served
    assert client.ask(method="DELETE")[0] == 501
    for host in ("0.0.0.0", "192.168.1.7", "example.org", "::"):
        with (
            pytest.raises(InputError, match="this machine alone"),
            open_server(arena(models(tmp_path / host, 1)), host),
        ):
            pass
    port = client.parts.port or 0
    with pytest.raises(InputError, match="give another port"), open_server(arena(models(tmp_path / "p", 1)), port=port):
        pass


def test_a_vote_that_cannot_be_written_stays_on_the_table(served: tuple[list[Path], Client]):
    folders, client = served
    _, question, _ = client.ask("question")
    for folder in folders:
        (folder / "judgments.jsonl").mkdir()  # no file can be written here
    status, said, _ = client.ask("vote", {"id": question["id"], "choice": "left"})
    assert status == 500
    assert "judgments.jsonl" in said["error"]
    assert client.ask("question")[1] == question


@contextlib.contextmanager
def killable(folders: list[Path]) -> Iterator[tuple[Client, int]]:
    """Serves in a process of its own, which ends by SIGKILL."""
    command = [sys.executable, str(SCRIPT), "anna", *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = next(match[0] for line in process.stdout if (match := re.search(r"http://\S+/", line)))
            yield Client(url), process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def test_no_vote_is_lost_by_a_kill(tmp_path: Path):
    folders = models(tmp_path, 6)
    for done in (0, 7):
        with killable(folders) as (client, _):
            for number in range(done, done + 7):
                question = client.ask("question")[1]
                assert question["done"] == number
                assert client.ask("vote", {"id": question["id"], "choice": "left"})[0] == 200
        assert len(votes(folders)) == done + 7
    # A line that the kill tore apart is dropped, and its pair asked again.
    with (folders[2] / "judgments.jsonl").open("a") as log:
        log.write('{"judge": "human", "jud')
    assert len(vote_all(arena(folders))) == 4
    assert len(votes(folders)) == 18
