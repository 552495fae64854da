"""What a server can prove is compared and the rest is named; a server of another model, template or EOS is found out.

vLLM and Ollama are not installed where tests run: fakes with a real tiny model behind them speak their formats. A real
``transformers serve`` is asked in a slow test.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from posttrain.chat_templates.errors import InputError, PosttrainError
from posttrain.evals.parity import ParityReport, check_served, read_comparisons
from posttrain.evals.parity.run import find_model
from posttrain.recipes.parity import parity_lines

from ..model_server import serving
from . import parity_fixtures as planted
from .parity_servers import FakeOllama, FakePlain, FakeVllm

FAKES = (FakePlain, FakeVllm, FakeOllama)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model ends its first answer early: with a token that it was seen to write."""
    from posttrain.evals.models import load_model
    from posttrain.evals.parity.portrait import gather, portray

    run = planted.make_run(tmp_path_factory.mktemp("served"))
    loaded = load_model(str(run), dtype="float32")
    written = portray("", loaded, gather(loaded, {})).answers[0].ids or ()
    stop = next(token for at, token in enumerate(written) if at > 3 and token not in written[:at])
    ends = [loaded.tokenizer.eos_token_id, stop]
    planted.edit(run / "generation_config.json", lambda value: value.update(eos_token_id=ends))
    return run


def status(found: ParityReport) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


@pytest.mark.parametrize("fake", FAKES)
def test_a_right_server_passes_and_what_it_cannot_show_is_named(right: Path, fake: type[FakePlain]) -> None:
    with fake(right) as server:
        found = check_served(str(right), server.url, name="served")
    assert found.passed, found.checks
    said = status(found)
    assert said["weights, configuration"] == "not compared"
    assert said["chat template"] == said["tokenisation"] == said["stop tokens"] == said["likeliest tokens"] == "same"
    assert said["log-probabilities"] in (("not compared",) if fake is FakePlain else ("same", "close"))
    template = found.check("chat template")
    assert template
    assert ("token by token" in template.detail) == (fake is FakeVllm)
    assert any(line.startswith("  not compared:") and "weights" in line for line in parity_lines(found))
    kept = read_comparisons(find_model(str(right))[2] or right)
    assert (found.other.name, found.other.place) in [(one.other.name, one.other.place) for one in kept]


def other_stop(run: Path) -> None:
    planted.edit(run / "generation_config.json", lambda value: value.update(eos_token_id=2))


def other_weights(run: Path) -> None:
    planted.stale_adapter(run)
    settings = (run / "generation_config.json").read_text()
    planted.merge_into(run, run.parent / "base", run / "adapter")
    (run / "generation_config.json").write_text(settings)


FAULTS = [
    (planted.other_template, "chat template", "another chat template"),
    (planted.missing_bos, "tokenisation", "missing BOS"),
    (other_stop, "stop tokens", "another EOS"),
    (planted.wrong_rope, "likeliest tokens", "other weights"),
    (other_weights, "likeliest tokens", "other weights"),
]
QUICK = {
    (FakePlain, other_stop),
    (FakePlain, other_weights),
    (FakeVllm, planted.wrong_rope),
    (FakeOllama, other_weights),
}


@pytest.mark.parametrize(
    ("fake", "plant", "name", "cause"),
    [
        pytest.param(fake, *fault, marks=() if (fake, fault[0]) in QUICK else pytest.mark.slow)
        for fake in FAKES
        for fault in FAULTS
    ],
)
def test_a_fault_of_the_served_folder_is_found_and_named(
    right: Path, tmp_path: Path, fake: type[FakePlain], plant: Callable[[Path], None], name: str, cause: str
) -> None:
    run = planted.copy_run(right, tmp_path / "copy")
    plant(run)
    with fake(run) as server:
        found = check_served(str(right), server.url, name="served")
    assert not found.passed
    assert status(found)[name] == "differs", found.checks
    assert next(check.cause for check in found.checks if check.cause).startswith(cause)
    assert found.first is not None
    if fake is FakeVllm and name == "likeliest tokens":
        assert status(found)["log-probabilities"] == "differs"


@pytest.mark.parametrize("fake", [FakePlain, *(pytest.param(fake, marks=pytest.mark.slow) for fake in FAKES[1:])])
def test_a_doubled_bos_is_told_by_the_length_of_a_prompt(right: Path, fake: type[FakePlain]) -> None:
    with fake(right, doubles_bos=True) as server:
        found = check_served(str(right), server.url, name="served")
    template = found.check("chat template")
    assert template
    assert template.status == "differs"
    assert (template.cause or "").startswith("an extra BOS")


@pytest.mark.slow
def test_another_built_in_template_is_named(right: Path, tmp_path: Path) -> None:
    from posttrain.chat_templates.templates import load

    run = planted.copy_run(right, tmp_path / "copy")
    (run / "chat_template.jinja").write_text(load("alpaca").source)
    with FakePlain(run) as server:
        found = check_served(str(right), server.url, name="served")
    template = found.check("chat template")
    assert template
    assert (template.cause or "").endswith("built-in alpaca")


def test_a_server_without_bare_texts_is_compared_by_its_chats(right: Path) -> None:
    with FakePlain(right, chats_only=True) as server:
        found = check_served(str(right), server.url, name="served")
    assert found.passed
    said = status(found)
    assert said["tokenisation"] == said["likeliest tokens"] == "not compared"
    assert said["greedy answers"] == "same"


def test_a_wrong_name_and_a_server_that_is_not_there_are_told(right: Path) -> None:
    with FakePlain(right) as server:
        with pytest.raises(InputError, match="--name"):
            check_served(str(right), server.url)
        address = server.url
    with pytest.raises(PosttrainError, match="does not answer"):
        check_served(str(right), address, name="served")


@pytest.mark.slow
def test_a_real_transformers_serve_passes_and_fails_with_another_template(right: Path, tmp_path: Path) -> None:
    with serving(right) as url:
        assert check_served(str(right), url).passed
    run = planted.copy_run(right, tmp_path / "copy")
    planted.other_template(run)
    with serving(run) as url:
        found = check_served(str(right), url, name=str(run))
    assert status(found)["chat template"] == "differs"
