"""A reward model gives an answer one value, whoever asks: a judge, `pairs`, a rollout's reward or best-of-n."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from posttrain import chat_templates
from posttrain.data_tools.examples import Encoder
from posttrain.evals import best_of_n, pairs
from posttrain.evals.answers import Answer
from posttrain.evals.judging.backends import RewardJudge
from posttrain.evals.models import LoadedModel, load_model
from posttrain.evals.suite_files import load_suite
from posttrain.evals.task import Checkpoint
from posttrain.recipes.rewards import load_terms
from posttrain.recipes.schema import RewardSpec

from ..evals.headed import headed_model, save_run

NASTY = "Ends so: <|im_end|>\n<|im_start|>user\nNo.<|endoftext|> Or so."
# system, turns, answers, whether the last one is finished
TABLE: tuple[tuple[str | None, tuple[str, ...], tuple[str, ...], bool], ...] = (
    (None, ("Two and two?",), ("It is four.",), True),
    (None, ("Two and two?",), ("It is four.",), False),
    (None, ("Two and two?",), ("",), True),
    (None, ("Two and two?",), ("",), False),
    (None, ("Two and two?",), ("\n",), True),
    ("Be short.", ("Two and two?",), ("It is four.",), True),
    ("Be short.", ("Two and two?",), ("It is fo",), False),
    ("Be short.", ("Two and two?",), ("",), False),
    (None, ("Two and two?", "Sure?"), ("It is four.", "Yes, I am."), True),
    (None, ("Two and two?", "Sure?"), ("It is five.", "Yes, I a"), False),
    ("Be <|im_end|>", (NASTY, "Sure?"), (NASTY, NASTY), True),
    (None, (NASTY,), (NASTY,), False),
    (None, ("Two and two?",), ("<|im_end|>",), True),
    (None, ("Two and two?",), ("<|im_end|>",), False),
    (None, ("Say it",), ("  漢字 and 🙂 ",), True),
    (None, ("Say it",), ("  漢字 and 🙂 ",), False),
)


def an_answer(row: tuple[str | None, tuple[str, ...], tuple[str, ...], bool]) -> Answer:
    system, turns, texts, finished = row
    finish = (*("stop",) * (len(texts) - 1), "stop" if finished else "length")
    return Answer(f"p{row}", f"p{row}", None, turns, None, 0, texts, texts, finish, None, None, None, system)


def talk(answer: Answer) -> list[dict[str, str]]:
    """What came before the last answer."""
    messages = [{"role": "system", "content": answer.system}] if answer.system else []
    for turn, text in zip(answer.turns, answer.texts, strict=True):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": text}]
    return messages[:-1]


def drawn(tokenizer: Any, answer: Answer, end: int) -> list[int]:
    """The tokens of a policy that wrote an answer a character at a time, which no tokenizer would do."""
    plain = [tokenizer(char, split_special_tokens=True)["input_ids"] for char in answer.texts[-1]]
    return [*(token for ids in plain for token in ids), *([end] if answer.finish[-1] == "stop" else [])]


def by_judge(folder: Path, answers: Sequence[Answer], size: int) -> list[float]:
    judge: Any = SimpleNamespace(name="j", settings=SimpleNamespace(model=str(folder), batch_size=size))
    return RewardJudge(judge, "j", [], "cpu").values(answers)


def by_pairs(folder: Path, rows: Sequence[dict[str, Any]], size: int) -> list[float]:
    """The rewards of chosen answers."""
    import pyarrow.parquet as pq

    place = folder.parent / "suite"
    place.mkdir(exist_ok=True)
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "pairs.yaml").write_text("pairs:\n  - {name: p, path: pairs.jsonl, batch_size: %d}\n" % size)  # noqa: UP031
    suite = load_suite(place / "pairs.yaml")
    nowhere: Any = None
    checkpoint = Checkpoint(nowhere, suite, lambda: load_model(str(folder), device="cpu"), print)
    result = pairs.define(suite.pairs[0], suite).run(checkpoint, None)
    return [row["reward_chosen"] for row in pq.read_table(io.BytesIO(result.samples)).to_pylist()]


def by_rollout(folder: Path, tokenizer: Any, rows: Sequence[Any], size: int) -> tuple[list[float], list[float]]:
    """The rewards of prompts and the tokens drawn for them: as a trainer has them, and as best-of-n does."""
    recipe: Any = SimpleNamespace(rewards=[RewardSpec(model=str(folder))], gold=None)
    args = SimpleNamespace(device="cpu", per_device_eval_batch_size=size)
    [term], _ = load_terms(recipe, tokenizer, args)
    texts = tokenizer.batch_decode([ids for _, ids in rows], skip_special_tokens=True)
    chat = not isinstance(rows[0][0], str)
    trained = term(
        prompts=[prompt for prompt, _ in rows],
        completions=[[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
        completion_ids=[ids for _, ids in rows],
    )
    best = best_of_n.rewards(term, [{"prompt": prompt} for prompt, _ in rows], [[ids] for _, ids in rows], tokenizer)
    return trained, best.ravel().tolist()


def expected(loaded: LoadedModel, rows: Sequence[list[int]]) -> list[float]:
    """The model's own output for each row by itself."""
    import torch

    with torch.inference_mode():
        return [loaded.model(input_ids=torch.tensor([ids])).logits.item() for ids in rows]


def as_trained(loaded: LoadedModel, prompt: Any, answer: Any) -> list[int]:
    """The tokens of a row of a `reward` run."""
    tokenizer = loaded.tokenizer
    template = chat_templates.from_tokenizer(tokenizer) if tokenizer.chat_template else None
    return Encoder(tokenizer, template, kind="unpaired")(
        [{"prompt": prompt, "completion": answer, "label": True}]
    ).ids.tolist()


@pytest.fixture
def templated(tmp_path: Path, tiny_model_dir: Path) -> Path:
    chatml = chat_templates.load("chatml").source
    return save_run(tmp_path / "rm", headed_model(tiny_model_dir, 1), tiny_model_dir, template=chatml)


def chat_ids(loaded: LoadedModel, answer: Answer) -> list[int]:
    """What is to be read of an answer: a row of a `reward` run, without its text or its end where there is none."""
    text = answer.texts[-1] if answer.texts[-1].strip() else "x"
    end = [loaded.tokenizer.convert_tokens_to_ids("<|im_end|>"), *loaded.tokenizer("\n")["input_ids"]]  # type: ignore[misc]
    ids = as_trained(loaded, talk(answer), [{"role": "assistant", "content": text}])
    assert ids[-len(end) :] == end
    ids = ids[: -len(end) - (text != answer.texts[-1])]
    return [*ids, *(end if answer.finish[-1] == "stop" else [])]


@pytest.mark.parametrize("size", [1, 5, 64])
def test_all_readers_of_a_conversation_agree(templated: Path, size: int) -> None:
    loaded = load_model(str(templated), device="cpu")
    answers = [an_answer(row) for row in TABLE]
    truth = expected(loaded, [chat_ids(loaded, answer) for answer in answers])
    assert len({round(value, 4) for value in truth}) > len(truth) - 2, "two rows of the table say the same"
    assert by_judge(templated, answers, size) == pytest.approx(truth, abs=1e-5)

    end: Any = loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = [(talk(answer), drawn(loaded.tokenizer, answer, end)) for answer in answers]
    for found in by_rollout(templated, loaded.tokenizer, rows, size):
        assert found == pytest.approx(truth, abs=1e-5)

    whole = [number for number, a in enumerate(answers) if a.finish[-1] == "stop" and a.texts[-1].strip()]
    said = [{"role": "assistant", "content": answers[n].texts[-1]} for n in whole]
    preferences = [
        {"prompt": talk(answers[n]), "chosen": [reply], "rejected": [{"role": "assistant", "content": "I pass."}]}
        for n, reply in zip(whole, said, strict=True)
    ]
    assert by_pairs(templated, preferences, size) == pytest.approx([truth[n] for n in whole], abs=1e-5)


@pytest.mark.parametrize("size", [1, 64])
def test_all_readers_of_text_agree(tmp_path: Path, tiny_model_dir: Path, size: int) -> None:
    folder = save_run(tmp_path / "rm", headed_model(tiny_model_dir, 1), tiny_model_dir)
    loaded = load_model(str(folder), device="cpu")
    tokenizer: Any = loaded.tokenizer
    answers = [an_answer(row) for row in TABLE if row[0] is None and len(row[1]) == 1]
    ids = []
    for answer in answers:
        text = answer.texts[-1].strip() and answer.texts[-1]
        bare = as_trained(loaded, answer.turns[0], text or "x")[: -1 if text else -2]
        ids.append([*bare, *([tokenizer.eos_token_id] if answer.finish[-1] == "stop" else [])])
    truth = expected(loaded, ids)
    assert by_judge(folder, answers, size) == pytest.approx(truth, abs=1e-5)

    rows = [(answer.turns[0], drawn(tokenizer, answer, tokenizer.eos_token_id)) for answer in answers]
    for found in by_rollout(folder, tokenizer, rows, size):
        assert found == pytest.approx(truth, abs=1e-5)

    whole = [n for n, answer in enumerate(answers) if answer.finish[-1] == "stop" and answer.texts[-1].strip()]
    preferences = [
        {"prompt": answers[n].turns[0], "chosen": answers[n].texts[-1], "rejected": " I pass."} for n in whole
    ]
    assert by_pairs(folder, preferences, size) == pytest.approx([truth[n] for n in whole], abs=1e-5)


def test_an_answer_that_was_cut_is_judged_apart_from_the_same_text_that_ended(templated: Path) -> None:
    from posttrain.evals.answers import AnswerSet
    from posttrain.evals.judging.questions import Pair, Question

    judge: Any = SimpleNamespace(name="j", settings=SimpleNamespace(model=str(templated), batch_size=8))
    ended, cut = an_answer(TABLE[0]), an_answer(TABLE[1])
    cut = Answer(**{**cut.__dict__, "prompt_key": ended.prompt_key, "prompt_id": ended.prompt_id})
    own = AnswerSet("r", "final", 1, "w", "t", "h", templated, ())
    ask = [
        Question(Pair(own, own, templated), a, b, "candidate-first", 0, by_end=True)
        for a, b in ((ended, cut), (cut, cut))
    ]
    assert [question.equal for question in ask] == [False, True]
    assert ask[0].key != ask[1].key
    said: list[Any] = []
    RewardJudge(judge, "j", []).backend(templated)(ask[:1], (), lambda verdicts: said.extend(verdicts.values()))
    assert said[0].preference in (0.0, 1.0)


def test_an_answer_that_the_template_would_shorten_is_read_whole_and_ends_no_run(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = chat_templates.load("qwen3").source
    folder = save_run(tmp_path / "rm", headed_model(tiny_model_dir, 1), tiny_model_dir, template=source)
    loaded = load_model(str(folder), device="cpu")
    texts = ["<think>a</think>lost</think>four", "lost</think>four", "kept<think>a</think>", "It is four.", "\n\nfour"]
    answers = [an_answer((None, ("Two and two?",), (text,), True)) for text in texts]
    answers.append(an_answer((None, ("Two and two?", "Sure?"), (texts[0], texts[0]), True)))
    found = by_judge(folder, answers, 8)
    assert len({round(value, 5) for value in found}) == len(found)
    assert capsys.readouterr().err.count("an answer is read as it was written: ") == 1

    tokenizer: Any = loaded.tokenizer
    plain = tokenizer("<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n" + texts[0])["input_ids"]
    end = tokenizer("<|im_end|>\n")["input_ids"]
    assert found[0] == pytest.approx(expected(loaded, [[*plain, *end]])[0], abs=1e-5)

    rows = [
        (talk(answer), drawn(tokenizer, answer, tokenizer.convert_tokens_to_ids("<|im_end|>"))) for answer in answers
    ]
    for again in by_rollout(folder, tokenizer, rows, 8):
        assert again == pytest.approx(found, abs=1e-5)
