"""A judge behind a real server: `transformers serve` with a model that has learnt to say A, whatever it reads."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from posttrain import chat_templates
from posttrain.evals.judging.run import judge
from posttrain.evals.suite_files import load_suite

from ..model_server import serving
from .judged import add_answers, judgments, metrics, scores, write_suite

SHORT = "{{ turns[0] }}\n{{ block('A', answers_first[0]) }}\n{{ block('B', answers_second[0]) }}\n"


@pytest.fixture(scope="module")
def biased_model(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A chat model that answers any prompt with A and its end of turn."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    chat_templates.install(chat_templates.load("chatml"), tokenizer)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    prompts = [[{"role": "user", "content": f"{n} {'word ' * (n % 7)}"}] for n in range(64)]
    heads = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
    said = tokenizer("A", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        ids = [*heads[step % 64], *said]
        labels = [-100] * (len(ids) - len(said)) + said
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("served") / "biased"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_real_server_judges_each_pair_once_and_its_bias_shows(tmp_path: Path, biased_model: Path):
    own = tmp_path / "s" / "mine"
    own.mkdir(parents=True)
    (own / "judge.yaml").write_text("kind: pairwise\n")
    (own / "prompt.jinja").write_text(SHORT)
    with serving(biased_model) as url:
        entry = f"model: '{biased_model}', base_url: '{url}', concurrency: 2, max_tokens: 8, timeout: 60"
        judges = f"  - {{judge: mine, prompts: chat, baseline: ../runs/base, canary: 3, {entry}}}\n"
        suite = load_suite(write_suite(tmp_path / "s", judges, prompts=5))
        folders = [tmp_path / "runs" / name for name in ("base", "one")]
        for folder in folders:
            add_answers(folder, suite, lambda prompt, f=folder: f.name)
        report = judge(folders, suite)
    assert (report.exit_code, report.judged) == (0, 10 + 6)
    assert Counter(j.status for j in judgments(*folders)) == {"judged": 16}
    assert all(j.prompt_tokens and j.seconds for j in judgments(folders[1]))
    (score,) = scores(folders[1], "chat-mine")
    assert metrics(score)["win_rate"].value == 0.5  # A in either order: a tie
    assert score.detail is not None
    assert score.detail["flip_rate"] == 1.0
    assert score.detail["members"][0]["by"] == "text"  # the server ignores `logprobs`, as the probe found
    again = judge(folders, suite)  # the server is gone
    assert (again.exit_code, again.judged, again.skipped) == (0, 0, 1)
