"""A right merge is told from nine wrong ones, each by its cause and by the first token that differs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from posttrain.chat_templates.errors import InputError
from posttrain.evals.checkpoints import model_hash
from posttrain.evals.models import load_model
from posttrain.evals.parity import PARITY, check_run, read_comparisons, stock_comparison
from posttrain.evals.parity.modelfile import Modelfile, read_modelfile, write_modelfile

from . import parity_fixtures as planted


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.make_run(tmp_path_factory.mktemp("parity"))


def test_a_right_merge_passes_and_its_record_says_of_which_models(right: Path, tmp_path: Path) -> None:
    run = planted.copy_run(right, tmp_path / "copy")
    identity = model_hash(run)
    found = check_run(str(run))
    assert model_hash(run) == identity == found.other.hash  # the record is no part of the model
    assert found.passed, [check for check in found.checks if check.status == "differs"]
    assert found.first is None
    assert 0 < (found.largest or 0) < 1e-3
    (kept,) = read_comparisons(run)
    assert kept.passed
    assert not kept.stale
    check_run(str(run))
    assert len(json.loads((run / PARITY).read_text())["comparisons"]) == 1
    planted.stale_adapter(run)
    (kept,) = read_comparisons(run)
    assert kept.stale


def test_a_merge_into_sixteen_bits_passes_by_the_rounding_of_its_type(tmp_path: Path) -> None:
    found = check_run(str(planted.make_run(tmp_path, "bfloat16")))
    assert found.passed, found.checks
    assert found.tolerance == "bfloat16"
    weights = found.check("weights")
    assert weights
    assert weights.status == "close"


@pytest.mark.parametrize(
    ("plant", "names", "cause"),
    [
        (planted.other_template, {"chat template", "greedy answers"}, "another chat template"),
        (planted.missing_bos, {"BOS of each request", "tokenisation"}, "missing BOS"),
        (planted.four_bits, {"weights", "log-probabilities"}, "quantised weights"),
        (planted.other_eos, {"special tokens", "stop tokens"}, "another EOS token"),
        (planted.lost_token, {"added tokens", "tokenisation"}, "a lost added token"),
        (planted.wrong_rope, {"RoPE", "log-probabilities"}, "wrong RoPE parameters"),
        (planted.stale_adapter, {"weights", "log-probabilities"}, "a stale adapter"),
        (planted.wrong_stop, {"stops of the Modelfile"}, "a wrong stop token in the Modelfile"),
        (planted.other_go_template, {"TEMPLATE of the Modelfile"}, "another TEMPLATE in the Modelfile"),
    ],
)
def test_a_planted_fault_is_found_and_named(
    right: Path, tmp_path: Path, plant: Callable[[Path], str | None], names: set[str], cause: str
) -> None:
    if plant is planted.four_bits:
        pytest.importorskip("bitsandbytes")
    run = planted.copy_run(right, tmp_path / "copy")
    against = plant(run)
    found = check_run(str(run), against)
    assert not found.passed
    wrong = {check.name: check for check in found.checks if check.status == "differs"}
    assert names <= set(wrong)
    first = next(check.cause for check in found.checks if check.cause)
    assert first.startswith(cause)
    if names & {"log-probabilities", "greedy answers"}:
        assert found.first is not None
        assert (found.first.cause or "").startswith(cause)
    if "log-probabilities" in names:
        assert found.first is not None
        assert found.first.position >= 1
        assert None not in found.first.margins


def test_a_right_modelfile_passes_with_its_weights(right: Path, tmp_path: Path) -> None:
    run = planted.copy_run(right, tmp_path / "copy")
    found = check_run(str(run), planted.write_modelfile(run))
    assert found.passed, [check for check in found.checks if check.status == "differs"]
    assert found.largest == 0
    assert {"TEMPLATE of the Modelfile", "stops of the Modelfile", "weights"} <= {check.name for check in found.checks}


def test_a_modelfile_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    template, stops = '"{{ .Content }}"\n# no comment\nFROM here', ["<a>", 'b"c', " d"]
    path = tmp_path / "Modelfile"
    path.write_text("# a comment\n\n" + write_modelfile("w.gguf", template, stops) + "PARAMETER temperature 0.7\n")
    assert read_modelfile(path) == Modelfile(tmp_path / "w.gguf", template, tuple(stops))
    path.write_text("from w.gguf\nsystem You are kind.\nparameter stop <x>")
    assert read_modelfile(path) == Modelfile(tmp_path / "w.gguf", None, ("<x>",), "You are kind.")
    for text, what in (
        ("FROM none.gguf", "FROM names no file"),
        ("FROM w.gguf\nADAPTER a", "ADAPTER"),
        ('FROM w.gguf\nTEMPLATE """x', "not closed"),
        ("FROM w.gguf\n???", "no command"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=what):
            read_modelfile(path)
    with pytest.raises(InputError, match="cannot hold"):
        write_modelfile("w.gguf", 'a """ b', [])


def test_what_cannot_be_compared_is_said(right: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--against"):
        check_run(str(right.parent / "base"))
    with pytest.raises(InputError, match="no such file"):
        check_run(str(right), str(tmp_path / "none.gguf"))


def no_stop(run: Path) -> None:
    planted.edit(run / "generation_config.json", lambda value: value.update(eos_token_id=None))


def repeats_less(run: Path) -> None:
    planted.edit(run / "generation_config.json", lambda value: value.update(repetition_penalty=5.0))


@pytest.fixture
def saved_twice(right: Path, tmp_path: Path) -> Path:
    """A run of a whole model, whose last checkpoint holds the final weights."""
    run = planted.copy_run(right, tmp_path / "copy")
    shutil.copytree(run, run / "checkpoint-1", ignore=shutil.ignore_patterns("adapter", "run.json", "parity.json"))
    return run


def test_what_transformers_alone_makes_of_a_saved_folder_is_the_model(saved_twice: Path) -> None:
    assert stock_comparison(saved_twice) is None
    found = check_run(str(saved_twice), "transformers")
    assert found.passed, [check for check in found.checks if check.status == "differs"]
    assert (found.one.place, found.other.place, found.largest) == ("checkpoint-1", ".", 0)
    assert {"chat template", "stop tokens", "weights", "greedy answers"} <= {check.name for check in found.checks}
    kept = stock_comparison(saved_twice)
    assert kept
    assert kept.passed
    planted.wrong_rope(saved_twice)
    assert stock_comparison(saved_twice) is None, "the folder has changed since"


@pytest.mark.parametrize(
    ("plant", "name", "cause"),
    [
        (planted.other_template, "chat template", "another chat template"),
        (planted.lost_token, "added tokens", "a lost added token"),
        (planted.other_eos, "special tokens", "another EOS token"),
        (no_stop, "stop tokens", "other stop tokens"),
        (repeats_less, "greedy answers", None),
    ],
)
def test_a_fault_of_saved_files_is_found(
    saved_twice: Path, plant: Callable[[Path], None], name: str, cause: str | None
) -> None:
    plant(saved_twice)
    found = check_run(str(saved_twice), "transformers")
    check = found.check(name)
    assert check
    assert (check.status, check.cause) == ("differs", cause)


def test_without_a_checkpoint_the_record_tells_of_another_template_and_the_suite_of_a_stop(right: Path, tmp_path: Path):
    run = planted.copy_run(right, tmp_path / "copy")
    trained = load_model(str(run)).template_fingerprint
    planted.edit(run / "run.json", lambda value: value.update(template={"fingerprint": trained}))
    assert check_run(str(run), "transformers").passed
    planted.other_template(run)
    no_stop(run)
    wrong = {check.name for check in check_run(str(run), "transformers").checks if check.status == "differs"}
    assert {"chat template of the training", "stop tokens"} <= wrong
    with pytest.raises(InputError, match="merge the adapter"):
        check_run(str(run / "adapter"), "transformers")
