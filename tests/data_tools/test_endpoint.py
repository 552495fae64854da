"""The client for endpoints, over real HTTP: nothing is lost, nothing is paid twice, no budget is exceeded."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools import endpoint_client
from posttrain.data_tools.endpoint import BUDGET_SPENT, EndpointSpec, Reply, Request, read_reply, worst_case
from posttrain.data_tools.endpoint_client import Endpoint, RateLimits, pause, retry_after
from posttrain.data_tools.errors import DataError
from pydantic import ValidationError

from ..fault_server import FaultServer, each, sometimes

SCRIPT = Path(__file__).parent / "endpoint_script.py"
KEY = "sk-0123456789abcdefghijklmnop"
NO_COMPLETION = ("truncated", "malformed", "no_choices", "no_choice", "null")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(endpoint_client, "LONGEST_PAUSE", 0.2)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record.jsonl"


def questions(number: int, **fields: Any) -> list[Request]:
    return [Request(({"role": "user", "content": f"question {i}"},), 8, **fields) for i in range(number)]


def endpoint(server: FaultServer, record: Path, **settings: Any) -> Endpoint:
    return Endpoint(EndpointSpec(**({"model": "m", "base_url": server.url} | settings)), record)


def ask(server: FaultServer, record: Path, requests: list[Request], **settings: Any) -> list[Reply]:
    """Returns a reply for each request, in their order, having checked that each came once."""
    found: list[tuple[Request, Reply]] = []
    endpoint(server, record, **settings).ask(requests, lambda *pair: found.append(pair))
    assert sorted(id(request) for request, _ in found) == sorted(map(id, requests))
    replies = {id(request): reply for request, reply in found}
    return [replies[id(request)] for request in requests]


def test_every_request_is_answered_once_whatever_the_server_does(record: Path) -> None:
    plan = sometimes(0.7, "429", "429:0.01", "500", "502", "503", "cut", "timeout", "error_200", *NO_COMPLETION)
    with FaultServer(plan, hang=2.0) as server:
        replies = ask(server, record, questions(40), timeout=1.0, retries=20, concurrency=10)
        assert [reply.text for reply in replies] == [f"QUESTION {i}" for i in range(40)]
        assert set(server.paid.values()) == {1}, "what succeeds is paid once"
        assert len(server.met) == 7 + len(NO_COMPLETION)
        sent = len(server.requests)
        again = ask(server, record, questions(40))
        assert [reply.text for reply in again] == [reply.text for reply in replies]
        assert all(reply.recorded for reply in again)
        assert len(server.requests) == sent


@pytest.mark.parametrize(
    ("fault", "finish", "error"),
    [
        ("thought", "length", "empty"),
        ("empty", "stop", "empty"),
        ("length", "length", None),
        ("refusal", "refusal", "the model refused: I cannot judge this."),
        ("filter", "content_filter", "filtered"),
        ("wrong_usage", "stop", None),
        ("no_usage", "stop", None),
    ],
)
def test_an_odd_answer_says_what_it_is_and_is_not_paid_again(
    record: Path, fault: str, finish: str, error: str | None
) -> None:
    with FaultServer(each(*[fault] * 9)) as server:
        first, second = (ask(server, record, questions(1))[0] for _ in range(2))
        assert first.finish == finish
        assert error is None or error in str(first.error)
        assert (first.error is None) == (error is None)
        assert (second.text, second.finish, second.error, second.raw) == (
            first.text,
            first.finish,
            first.error,
            first.raw,
        )
        assert len(server.requests) == 1
        assert first.raw, "what came is kept"
        other = ask(server, record, questions(1, salt="again"))[0]
        assert not other.recorded, "another salt asks anew"


@pytest.mark.parametrize("fault", NO_COMPLETION)
def test_a_body_that_is_no_completion_is_asked_for_again_within_bounds_and_never_kept(record: Path, fault: str) -> None:
    with FaultServer(each(*[fault] * 3)) as server:
        lost = ask(server, record, questions(1), retries=1)[0]
        assert (lost.finish, lost.text, lost.recorded) == (None, "", False)
        assert str(lost.error).startswith("the request failed (the server's answer ")
        assert len(server.requests) == 2
        assert endpoint(server, record).spent.calls == 0
        assert ask(server, record, questions(1), retries=1)[0].text == "QUESTION 0", "another call tries again"
        assert len(server.requests) == 4


def test_a_body_that_an_older_version_kept_for_an_answer_is_asked_for_again(record: Path) -> None:
    with FaultServer() as server:
        ask(server, record, questions(2))
        page = json.dumps("<html>I am a proxy</html>")
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        spoilt = [{**line, "body": page} if "body" in line else line for line in lines]
        record.write_text("".join(json.dumps(line) + "\n" for line in spoilt))
        assert [reply.text for reply in ask(server, record, questions(2))] == ["QUESTION 0", "QUESTION 1"]
        assert all(reply.recorded for reply in ask(server, record, questions(2)))
        assert len(server.requests) == 4


def test_a_server_that_answers_with_a_page_alone_ends_the_run(record: Path) -> None:
    with FaultServer(lambda body, times: "malformed") as server:
        with pytest.raises(PosttrainError, match=r"does not answer.*proxy"):
            ask(server, record, questions(50), retries=0)
        assert len(server.requests) < 30


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_what_another_try_cannot_help_is_rejected_at_once_and_alone(record: Path, status: str) -> None:
    def plan(body: dict[str, Any], times: int) -> str | None:
        return status if body["messages"][0]["content"] in ("question 3", "question 4") else None

    with FaultServer(plan) as server:
        replies = ask(server, record, questions(8))
        assert [i for i, reply in enumerate(replies) if reply.error] == [3, 4]
        assert [reply.finish for reply in replies[2:6]] == ["stop", "rejected", "rejected", "stop"]
        assert f"planted {status}" in str(replies[3].error)
        assert len(server.requests) == 8
        ask(server, record, questions(8))
        assert len(server.requests) == 10, "it cost nothing, and may be tried again"


def test_a_server_that_takes_no_request_at_all_ends_the_run(record: Path) -> None:
    with FaultServer(lambda body, times: "400") as server:
        with pytest.raises(PosttrainError, match=r"planted 400.*took none of the requests"):
            ask(server, record, questions(500), concurrency=4)
        assert len(server.requests) < 50


@pytest.mark.parametrize("status", ["408", "409", "425"])
def test_what_may_pass_is_tried_again(record: Path, status: str) -> None:
    with FaultServer(each(status)) as server:
        assert [reply.text for reply in ask(server, record, questions(2))] == ["QUESTION 0", "QUESTION 1"]
        assert len(server.requests) == 4


@pytest.mark.parametrize("status", ["401", "402", "403", "404", "405"])
def test_a_server_that_refuses_us_ends_the_run_with_one_error(record: Path, status: str) -> None:
    with FaultServer(each(*[status] * 9)) as server:
        with pytest.raises(PosttrainError, match=f"does not answer.*planted {status}.*(check|give|money)"):
            ask(server, record, questions(30), concurrency=3)
        assert len(server.requests) <= 3


def test_answers_in_flight_are_kept_when_the_run_ends(record: Path) -> None:
    def plan(body: dict[str, Any], times: int) -> str | None:
        return "401" if times == 1 and body["messages"][0]["content"] == "question 3" else None

    with FaultServer(plan, delay=0.1) as server:
        with pytest.raises(PosttrainError, match="planted 401"):
            ask(server, record, questions(8), concurrency=4)
        replies = ask(server, record, questions(8))
        assert [reply.recorded for reply in replies[:4]] == [True, True, True, False]
        assert set(server.paid.values()) == {1}


def test_a_failing_consumer_ends_the_run_and_loses_no_answer(record: Path) -> None:
    def take(request: Request, reply: Reply) -> None:
        raise ValueError("no room")

    with FaultServer(delay=0.05) as server:
        with pytest.raises(ValueError, match="no room"):
            endpoint(server, record, concurrency=4).ask(questions(20), take)
        assert sum(server.paid.values()) == 4
        assert sum(reply.recorded for reply in ask(server, record, questions(20))) == 4


def test_a_server_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    spec = EndpointSpec(model="m", base_url="http://127.0.0.1:9/v1", retries=1)
    lost = Endpoint(spec, tmp_path / "record.jsonl")
    with pytest.raises(PosttrainError, match=r"does not answer.*check that the server is up"):
        lost.ask(questions(50), lambda *pair: None)
    assert lost.spent.tokens == 0, "what was never sent costs nothing"


def test_equal_requests_are_asked_once(record: Path) -> None:
    with FaultServer() as server:
        replies = ask(server, record, [*questions(3), *questions(3), *questions(3, salt="x")])
        assert [reply.text for reply in replies] == [f"QUESTION {i}" for i in range(3)] * 3
        assert len(server.requests) == 6


def test_what_decides_an_answer_is_part_of_its_key_and_the_rest_is_not() -> None:
    spec = EndpointSpec(model="m", base_url="http://a/v1")
    base = Request(({"role": "user", "content": "x"},), 8)
    others = [
        (Request(({"role": "user", "content": "y"},), 8), spec),
        (Request(base.messages, 9), spec),
        (Request(base.messages, 8, temperature=0.5), spec),
        (Request(base.messages, 8, top_p=0.5), spec),
        (Request(base.messages, 8, seed=1), spec),
        (Request(base.messages, 8, top_logprobs=2), spec),
        (Request(base.messages, 8, stop=("x",)), spec),
        (Request(base.messages, 8, salt="s"), spec),
        (base, spec.model_copy(update={"model": "n"})),
        (base, spec.model_copy(update={"base_url": "http://b/v1"})),
        (base, spec.model_copy(update={"extra": {"reasoning_effort": "low"}})),
    ]
    keys = [request.key(where) for request, where in [(base, spec), *others]]
    assert len(set(keys)) == len(keys)
    faster = {"concurrency": 1, "timeout": 3, "retries": 0, "base_url": "http://user:word@a/v1/", "api_key_env": "K"}
    assert base.key(spec.model_copy(update=faster)) == keys[0]


def test_concurrency_is_used_and_not_exceeded(record: Path) -> None:
    with FaultServer(sometimes(0.2, "500"), delay=0.02) as server:
        ask(server, record, questions(40), concurrency=5)
        assert server.most_busy == 5


def test_hostile_text_passes_through_whole(record: Path) -> None:
    text = (
        'NUL \0, bidi \u202e, ANSI \x1b[31m, </script>, {{ 1 / 0 }}, line \u2028 separator, "quotes"\n\n' + "x" * 10**6
    )
    with FaultServer(reply=lambda messages: text + "\ud800") as server:
        request = Request(({"role": "user", "content": text + "\udc00"},), 8)
        replies = [ask(server, record, [request])[0] for _ in range(2)]
        assert [reply.text for reply in replies] == [text + "?"] * 2
        assert server.requests[0]["messages"][0]["content"] == text + "?"
        assert len(record.read_text().splitlines()) >= 2


@pytest.mark.parametrize("body", ["", "null", "[]", "3", '{"choices": 5}', '{"choices": [null]}', "[" * 100_000])
def test_no_answer_is_too_odd_to_be_named(body: str) -> None:
    reply = read_reply("key", body, seconds=0, cost=None)
    assert (reply.finish, reply.text) == (None, "")
    assert reply.error


# --- budget ---


def most(requests: list[Request], spec: EndpointSpec) -> int:
    return max(sum(worst_case(request.body(spec))) for request in requests)


@pytest.mark.parametrize("faults", [(), ("no_usage", "wrong_usage"), ("cut", "timeout", "500")])
def test_a_budget_of_tokens_is_spent_but_never_exceeded(record: Path, faults: tuple[str, ...]) -> None:
    with FaultServer(sometimes(0.3, *faults) if faults else None, hang=0.5) as server:
        budget, requests = 4000, questions(900)
        room = most(requests, EndpointSpec(model="m", base_url=server.url))
        for _ in range(2):
            replies = ask(server, record, requests, budget={"tokens": budget}, timeout=0.2, retries=20)
            spent = endpoint(server, record).spent
            assert server.tokens <= spent.tokens <= budget
            assert spent.tokens > budget - room, "it is used up before anything is left out"
            assert {reply.error for reply in replies} == {None, BUDGET_SPENT}
            assert sum(reply.error is None for reply in replies) == spent.calls


def test_a_budget_of_money_is_never_exceeded(record: Path) -> None:
    prices = {"input": 1000.0, "output": 30000.0}
    with FaultServer() as server:
        replies = ask(server, record, questions(200), prices=prices, budget={"money": 3.0}, concurrency=3)
        answered = [reply for reply in replies if reply.error is None]
        true = sum(1e-3 * (reply.prompt_tokens or 0) + 0.03 * (reply.completion_tokens or 0) for reply in answered)
        spent = endpoint(server, record, prices=prices).spent
        assert 0 < true <= 3.0
        assert spent.money == pytest.approx(true)
        assert sum(reply.cost or 0 for reply in answered) == pytest.approx(true)
        assert endpoint(server, record).spent.money is None


def test_a_budget_of_hours_ends_the_work_and_what_is_on_its_way(record: Path) -> None:
    with FaultServer(delay=0.3) as server:
        ask(server, record.with_name("before"), questions(1))  # so that imports take none of the hours
        settings: dict[str, Any] = {"budget": {"hours": 2 / 3600}, "concurrency": 1, "retries": 9}
        replies = ask(server, record, questions(40), **settings)
        assert {reply.error for reply in replies} == {None, BUDGET_SPENT}
        sent = len(server.requests)
        assert sent < 1 + 40
        assert [r.error for r in ask(server, record, questions(40), **settings)] == [reply.error for reply in replies]
        assert len(server.requests) == sent  # a new call has no new hours


def test_a_server_that_adds_its_own_words_is_not_believed_to_be_cheap_twice(record: Path) -> None:
    """Its template puts a long system prompt before each question, which no client can know beforehand."""

    class Wordy(FaultServer):
        def answer(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
            found = super().answer(body, fault)
            found["usage"]["prompt_tokens"] += 2000
            self.tokens += 2000
            return found

    with Wordy() as server:
        ask(server, record, questions(1), budget={"tokens": 5000})
        replies = ask(server, record, questions(20), budget={"tokens": 5000}, concurrency=1)
        assert server.tokens <= 5000
        assert sum(reply.error is None for reply in replies) == 2


def test_a_budget_of_nothing_sends_nothing(record: Path) -> None:
    with FaultServer() as server:
        replies = ask(server, record, questions(5), budget={"tokens": 0})
        assert [reply.error for reply in replies] == [BUDGET_SPENT] * 5
        assert server.requests == []
    with pytest.raises(ValidationError, match="needs `prices`"):
        EndpointSpec(model="m", base_url="http://a", budget={"money": 1})  # type: ignore[arg-type]


# --- kills ---


def killed_runs(server: FaultServer, record: Path, kills: int, number: int, seed: int, **settings: Any) -> list[str]:
    """Kills the client at random moments of its work so often, then lets it end; returns what the last run printed."""
    rng = random.Random(seed)
    command = [sys.executable, str(SCRIPT), server.url, str(record), str(number)]
    command += [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    for _ in range(kills):
        before = len(server.requests)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(server.requests) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_kills(record: Path, kills: int, number: int) -> None:
    with FaultServer(sometimes(0.1, "500", "429"), delay=0.01) as server:
        lines = killed_runs(server, record, kills, number, seed=kills, concurrency=4)
        assert sorted(lines) == sorted(f"QUESTION {i}" for i in range(number))
        assert len(server.paid) == number
        assert sum(server.paid.values()) <= number + 4 * kills
        assert sum(server.paid.values()) > number or kills < 3, "no kill hit a request: the test shows nothing"


def test_a_kill_costs_what_was_in_flight_at_most(record: Path) -> None:
    check_kills(record, 2, 100)


@pytest.mark.slow
def test_ten_kills_cost_what_was_in_flight_at_most(record: Path) -> None:
    check_kills(record, 10, 500)


def test_a_budget_holds_over_kills(record: Path) -> None:
    with FaultServer(delay=0.01) as server:
        budget = 4000
        lines = killed_runs(server, record, 2, 800, seed=1, concurrency=4, budget={"tokens": budget})
        assert lines.count(BUDGET_SPENT) + sum(line.startswith("QUESTION") for line in lines) == 800
        assert BUDGET_SPENT in lines
        spent = endpoint(server, record).spent
        assert server.tokens <= spent.tokens <= budget
        assert spent.unsettled <= 2 * 4


def test_a_torn_last_line_is_dropped_and_asked_again(record: Path) -> None:
    with FaultServer() as server:
        ask(server, record, questions(6), concurrency=1)
        lines = record.read_bytes().splitlines(keepends=True)
        record.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
        before = endpoint(server, record).spent
        assert (before.calls, before.unsettled) == (5, 1)
        ask(server, record, questions(6))
        assert sorted(server.paid.values()) == [1] * 5 + [2]
        record.write_bytes(b"what is this\n" + record.read_bytes())
        with pytest.raises(PosttrainError, match="not a line of a record"):
            ask(server, record, questions(6))


def test_processes_that_share_a_record_pay_once(record: Path) -> None:
    with FaultServer(delay=0.005) as server:
        command = [sys.executable, str(SCRIPT), server.url, str(record), "60"]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        printed = [process.communicate()[0].splitlines() for process in processes]
        assert [sorted(lines) for lines in printed] == [sorted(f"QUESTION {i}" for i in range(60))] * 2
        assert sorted(server.paid.values()) == [1] * 60


# --- limits ---


class FakeTime:
    """A clock that moves only when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += seconds


def sent_under(
    limits: Callable[[FakeTime], RateLimits], amounts: list[int], workers: int = 8
) -> list[tuple[float, int]]:
    """Returns when each of some requests was let through, and how large it was."""
    fake, sent, left = FakeTime(), [], iter(amounts)
    limit = limits(fake)

    async def work() -> None:
        for amount in left:
            await limit.acquire(amount)
            sent.append((fake.now, amount))
            fake.now += 0.01

    async def main() -> None:
        limit.begin()
        await asyncio.gather(*[work() for _ in range(workers)])

    asyncio.run(main())
    return sent


def test_no_minute_holds_more_requests_than_allowed() -> None:
    sent = sent_under(lambda fake: RateLimits(30, None, fake.clock, fake.sleep), [1] * 200)
    times = [time for time, _ in sent]
    assert all(later - early >= 60 for early, later in zip(times, times[30:], strict=False))
    assert times[-1] - times[0] < 200 / 30 * 60, "nor many fewer"


def test_no_minute_holds_more_tokens_than_allowed() -> None:
    rng = random.Random(0)
    amounts = [rng.randint(1, 400) for _ in range(200)]
    sent = sent_under(lambda fake: RateLimits(None, 1000, fake.clock, fake.sleep), amounts)
    assert [amount for _, amount in sent] == amounts, "first come, first served"
    for place, (begin, _) in enumerate(sent):
        assert sum(amount for time, amount in sent[place:] if time < begin + 60 - 1e-6) <= 1000
    assert sent_under(lambda fake: RateLimits(None, 10, fake.clock, fake.sleep), [50, 50]), (
        "larger than the limit: alone"
    )


def test_tokens_that_were_not_used_make_room() -> None:
    fake = FakeTime()
    limits = RateLimits(None, 100, fake.clock, fake.sleep)
    sent = asyncio.run(limits.acquire(90))
    assert limits.wait(50) > 0
    sent.tokens = 10
    assert limits.wait(50) == 0
    fake.now += 61
    assert limits.wait(100) == 0
    sent.tokens = 0
    assert limits.wait(100) == 0
    asyncio.run(limits.acquire(100))
    assert limits.wait(1) == pytest.approx(60)


def test_requests_per_minute_hold_over_several_calls(record: Path) -> None:
    fake = FakeTime()
    with FaultServer() as server:
        spec = EndpointSpec(model="m", base_url=server.url, requests_per_minute=5)
        slow = Endpoint(spec, record, clock=fake.clock, sleep=fake.sleep)
        other = Endpoint(spec, record.with_name("other.jsonl"), limits=slow.limits, sleep=fake.sleep)
        for salt, asked in (("a", slow), ("b", slow), ("c", other)):
            asked.ask(questions(5, salt=salt), lambda *pair: None)
        assert len(server.requests) == 15
        assert 120 <= fake.now - 1000 < 180


def test_everybody_is_quiet_for_as_long_as_the_server_asks(record: Path) -> None:
    def plan(body: dict[str, Any], times: int) -> str | None:
        return "429:0.4" if len(server.requests) == 1 else None

    with FaultServer(plan) as server:
        ask(server, record, questions(20), concurrency=1)
        assert server.arrivals[1] - server.arrivals[0] >= 0.4
        assert server.arrivals[-1] - server.arrivals[1] < 0.4


def test_pauses_grow_and_are_drawn_at_random() -> None:
    longest = [max(pause(tries, None) for _ in range(300)) for tries in (1, 3, 5)]
    assert longest[0] <= 0.01 < longest[1] <= 0.04 < longest[2] <= 0.16
    assert min(pause(5, None) for _ in range(300)) < 0.02
    assert pause(1, 7.0) >= 7.0


def test_retry_after_is_read_as_seconds_milliseconds_or_a_date() -> None:
    from email.utils import formatdate

    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "300", "retry-after": "9"}) == pytest.approx(0.3)
    assert retry_after({"retry-after": formatdate(time.time() + 300, usegmt=True)}) == pytest.approx(300, abs=10)
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({}) is None


def test_a_server_that_asks_for_an_hour_is_not_waited_for(record: Path) -> None:
    with FaultServer(each(*["429:3600"] * 9)) as server:
        reply = ask(server, record, questions(1))[0]
        assert reply.error == "the server asks for a long pause: 3600 s"


# --- keys and probes ---


def test_the_key_is_sent_and_stands_in_no_file_and_no_error(
    record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with FaultServer(each("500", "400"), reply=lambda messages: f"your key is {KEY}") as server:
        refused = ask(server, record, questions(2), api_key_env="MY_KEY")  # its errors repeat the key too
        found = ask(server, record, questions(2), api_key_env="MY_KEY")
        assert set(server.keys) == {f"Bearer {KEY}"}
        assert "planted 400" in str(refused[0].error)
        assert found[0].text.startswith("your key is")
        assert KEY not in str(refused) + str(found)
    with FaultServer(each("401")) as server, pytest.raises(PosttrainError) as caught:
        ask(server, record, questions(1), api_key_env="MY_KEY")
    assert KEY not in str(caught.value)
    files = [path for path in record.parent.rglob("*") if path.is_file()]
    assert files
    assert all(KEY not in path.read_text() for path in files)
    assert KEY not in "".join(capsys.readouterr())


def test_a_key_that_is_missing_or_no_key_is_said(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer() as server:
        with pytest.raises(DataError, match="NO_SUCH_KEY is not set"):
            ask(server, record, questions(1), api_key_env="NO_SUCH_KEY")
        monkeypatch.setenv("MY_KEY", f"{KEY}\nX-Evil: 1")
        with pytest.raises(DataError, match="holds no API key") as caught:
            ask(server, record, questions(1), api_key_env="MY_KEY")
        assert KEY not in str(caught.value)
        assert server.requests == []


@pytest.mark.parametrize("gives", [True, False])
def test_the_probe_tells_servers_that_ignore_logprobs_and_asks_once(record: Path, gives: bool) -> None:
    with FaultServer(logprobs=gives) as server:
        assert endpoint(server, record).probe_logprobs() is gives
        assert endpoint(server, record).probe_logprobs() is gives
        assert len(server.requests) == 1
        assert endpoint(server, record, model="other").probe_logprobs() is gives
        assert len(server.requests) == 2


def test_the_probe_takes_a_refusal_for_a_no_and_an_outage_for_no_answer(record: Path) -> None:
    with FaultServer(each("400")) as server:
        assert endpoint(server, record).probe_logprobs() is False
    with FaultServer(each("500", "500")) as server, pytest.raises(PosttrainError, match="cannot tell"):
        endpoint(server, record, retries=1).probe_logprobs()


def test_logprobs_come_by_token(record: Path) -> None:
    chances = {"A": -0.2, "B": -1.9, "C": -5.0}
    with FaultServer(logprobs=lambda messages: chances) as server:
        reply = ask(server, record, questions(1, top_logprobs=2))[0]
        assert reply.logprobs == ({"A": -0.2, "B": -1.9},)
        assert ask(server, record, questions(1))[0].logprobs is None


def test_an_endpoint_can_be_asked_from_a_notebook(record: Path) -> None:
    async def cell() -> list[Reply]:
        return ask(server, record, questions(3))

    with FaultServer() as server:
        assert [reply.error for reply in asyncio.run(cell())] == [None] * 3


def test_progress_counts_every_request(record: Path) -> None:
    seen: list[tuple[int, int]] = []
    with FaultServer() as server:
        asked = [*questions(3), *questions(2)]
        endpoint(server, record).ask(asked, lambda *pair: None, progress=lambda *pair: seen.append(pair))
    assert seen == [(i, 5) for i in range(1, 6)]
