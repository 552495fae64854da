"""What one checkpoint has in common with the last is not loaded again, and nobody can tell by the figures."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttrain.evals import loading
from posttrain.evals.checkpoints import write_manifest
from posttrain.evals.errors import EvalError
from posttrain.evals.loading import Loader
from posttrain.evals.models import Pretrained, load_model, load_tokenizer
from posttrain.evals.records import ScoreStore
from posttrain.evals.score import score

from .conftest import add_checkpoint, write_run_json

LORA: dict[str, Any] = {"r": 4, "target_modules": "all-linear"}


def save_adapter(folder: Path, base: Path, seed: int, tokens: tuple[str, ...] = (), **settings: Any) -> Path:
    """Saves an adapter whose every weight is drawn."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    if tokens:
        tokenizer.add_tokens(list(tokens))
        model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(seed)
    adapted: Any = get_peft_model(model, LoraConfig(**(LORA | settings)))
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.arange(24).view(2, 12)).logits


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names what weights are loaded from."""
    names: list[str] = []
    weights = Pretrained.weights

    def counted(self: Pretrained, **options: Any) -> Any:
        names.append(Path(self.name).name)
        return weights(self, **options)

    monkeypatch.setattr(Pretrained, "weights", counted)
    return names


def same_as_alone(loader: Loader, folders: list[Path]) -> None:
    """Compares each model, loaded after those before it, with the one loaded alone, to the bit."""
    for folder in folders:
        found = loader.load(str(folder))
        alone = load_model(str(folder), device="cpu")
        assert logits(found.model).equal(logits(alone.model)), folder.name
        assert found.template_fingerprint == alone.template_fingerprint
        assert not any(module.training for module in found.model.modules())


def test_adapters_of_one_base_share_it_to_the_bit(tmp_path: Path, tiny_model_dir: Path, loads: list[str]):
    adapters = [
        save_adapter(tmp_path / "plain", tiny_model_dir, 1),
        save_adapter(tmp_path / "wider", tiny_model_dir, 2, r=8, lora_alpha=3, use_rslora=True),
        save_adapter(tmp_path / "fewer", tiny_model_dir, 3, target_modules=["q_proj"]),
    ]
    loader = Loader("cpu")
    same_as_alone(loader, [*adapters, tiny_model_dir, adapters[0]])
    assert len(loads) == 1 + 5  # the base once, and what each was compared with


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names the adapters for which layers are built."""
    names: list[str] = []
    apply = loading.apply_adapter
    monkeypatch.setattr(
        loading, "apply_adapter", lambda model, folder: names.append(folder.name) or apply(model, folder)
    )
    return names


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"use_dora": True, "lora_dropout": 0.5}, marks=pytest.mark.slow)],
    ids=str,
)
def test_an_adapter_of_the_same_configuration_is_copied_into_the_last_ones_layers(
    tmp_path: Path, tiny_model_dir: Path, built: list[str], settings: dict[str, Any]
):
    """Also what names another place of the base, and modules in another order."""
    folders = [save_adapter(tmp_path / f"a{seed}", tiny_model_dir, seed, **settings) for seed in (1, 2, 3)]
    shutil.copytree(tiny_model_dir, tmp_path / "elsewhere")
    modules = json.loads((folders[1] / "adapter_config.json").read_text())["target_modules"]
    configure(folders[1], target_modules=modules[::-1], base_model_name_or_path=str(tmp_path / "elsewhere"))
    same_as_alone(Loader("cpu"), [*folders, folders[0]])
    assert built == ["a1"]


def scale(folder: Path) -> None:
    configure(folder, lora_alpha=5)


def scale_one(folder: Path) -> None:
    configure(folder, alpha_pattern={"q_proj": 1})


def save_in_half(folder: Path) -> None:
    resave(folder, lambda held: {name: one.bfloat16() for name, one in held.items()}, "adapter_model.safetensors")


@pytest.mark.parametrize(
    "change",
    [scale, pytest.param(scale_one, marks=pytest.mark.slow), pytest.param(save_in_half, marks=pytest.mark.slow)],
)
def test_an_adapter_of_another_configuration_or_layout_gets_layers_of_its_own(
    tmp_path: Path, tiny_model_dir: Path, built: list[str], change: Callable[[Path], None]
):
    folders = [save_adapter(tmp_path / f"a{seed}", tiny_model_dir, seed) for seed in (1, 2)]
    change(folders[1])
    same_as_alone(Loader("cpu"), folders)
    assert built == ["a1", "a2"]


def write_into_base(model: Any) -> None:
    import torch

    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1


def write_into_layer(model: Any) -> None:
    next(one for name, one in model.named_parameters() if "lora_B" in name).data += 1


def switch_off(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def rescale(model: Any) -> None:
    next(one for one in model.modules() if hasattr(one, "scale_layer")).scale_layer(0.5)


def merge(model: Any) -> None:
    model.merge_adapter()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(write_into_base, marks=pytest.mark.slow),
        write_into_layer,
        pytest.param(switch_off, marks=pytest.mark.slow),
        pytest.param(rescale, marks=pytest.mark.slow),
        merge,
    ],
)
def test_layers_that_were_changed_are_not_used_again(
    tmp_path: Path, tiny_model_dir: Path, built: list[str], change: Callable[[Any], None]
):
    folders = [save_adapter(tmp_path / f"a{seed}", tiny_model_dir, seed) for seed in (1, 2)]
    loader = Loader("cpu")
    change(loader.load(str(folders[0])).model)
    same_as_alone(loader, folders[1:])
    assert built == ["a1", "a2"]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"modules_to_save": ["lm_head"]}, marks=pytest.mark.slow),
        pytest.param({"bias": "all"}, marks=pytest.mark.slow),
        pytest.param({"init_lora_weights": "pissa"}, marks=pytest.mark.slow),
        pytest.param({"trainable_token_indices": [1, 2]}, marks=pytest.mark.slow),
        {"tokens": ("<new>", "<newer>")},
    ],
    ids=str,
)
def test_an_adapter_that_changes_its_base_leaves_nothing_behind(
    tmp_path: Path, tiny_model_dir: Path, settings: dict[str, Any]
):
    plain = [save_adapter(tmp_path / f"plain{seed}", tiny_model_dir, seed) for seed in (1, 2)]
    other = save_adapter(tmp_path / "other", tiny_model_dir, 3, **settings)
    same_as_alone(Loader("cpu"), [plain[0], other, plain[1], other, tiny_model_dir, plain[0]])


@pytest.mark.slow
def test_tied_embeddings_under_adapters(tmp_path: Path, instruct_model_dir: Path):
    folders = [
        save_adapter(tmp_path / "plain", instruct_model_dir, 1),
        save_adapter(tmp_path / "embeddings", instruct_model_dir, 2, target_modules=["embed_tokens", "q_proj"]),
        save_adapter(tmp_path / "saved", instruct_model_dir, 3, modules_to_save=["embed_tokens"]),
    ]
    same_as_alone(Loader("cpu"), [folders[0], *folders, folders[0], instruct_model_dir, folders[1]])


def test_a_base_that_was_written_into_is_loaded_anew(tmp_path: Path, tiny_model_dir: Path, loads: list[str]):
    import torch

    adapters = [save_adapter(tmp_path / f"a{seed}", tiny_model_dir, seed) for seed in (1, 2, 3)]
    loader = Loader("cpu")
    model: Any = loader.load(str(adapters[0])).model
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1
    same_as_alone(loader, adapters[1:])
    assert len(loads) == 1 + 1 + 2


def test_a_base_whose_files_have_changed_is_loaded_anew(tmp_path: Path, tiny_model_dir: Path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    adapter = save_adapter(tmp_path / "a", base, 1)
    loader = Loader("cpu")
    before = logits(loader.load(str(adapter)).model)
    moved = add_checkpoint(tmp_path, 7, tiny_model_dir)
    shutil.copy(moved / "model.safetensors", base / "model.safetensors")
    same_as_alone(loader, [adapter])
    assert not logits(loader.load(str(adapter)).model).equal(before)


def test_checkpoints_of_a_run_share_one_set_of_tensors(make_run: Callable[..., Path], loads: list[str]):
    run = make_run((1, 2, 3), final=False)
    folders = [run / f"checkpoint-{step}" for step in (1, 2, 3)]
    loader = Loader("cpu")
    same_as_alone(loader, [*folders, folders[0]])
    assert loads == ["checkpoint-1", "checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-1"]


def resave(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], file: str = "model.safetensors") -> None:
    from safetensors.torch import load_file, save_file

    path = folder / file
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def halve(folder: Path) -> None:
    resave(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})


def scale_norms(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))


def end_elsewhere(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')


@pytest.mark.parametrize("change", [halve, scale_norms, pytest.param(end_elsewhere, marks=pytest.mark.slow)])
def test_a_checkpoint_of_another_kind_is_loaded_anew(
    make_run: Callable[..., Path], loads: list[str], change: Callable[[Path], None]
):
    run = make_run((1, 2), final=False)
    change(run / "checkpoint-2")
    loader = Loader("cpu")
    same_as_alone(loader, [run / "checkpoint-1", run / "checkpoint-2"])
    assert loads == ["checkpoint-1", "checkpoint-1", "checkpoint-2", "checkpoint-2"]
    model: Any = loader.load(str(run / "checkpoint-2")).model
    assert model.generation_config.eos_token_id == load_model(
        str(run / "checkpoint-2"), device="cpu"
    ).model.generation_config.eos_token_id  # fmt: skip


@pytest.mark.slow
def test_tied_weights_that_a_file_holds_twice(tmp_path: Path, instruct_model_dir: Path):
    import torch

    folders = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        shutil.copytree(instruct_model_dir, folder)
        resave(
            folder,
            lambda tensors, number=number: {
                "lm_head.weight": torch.full_like(tensors["model.embed_tokens.weight"], number),
                **{name: tensor * number for name, tensor in tensors.items()},
            },
        )
        folders.append(folder)
    same_as_alone(Loader("cpu"), [instruct_model_dir, *folders, instruct_model_dir])


def test_scores_of_adapters_together_are_those_of_each_alone(
    tmp_path: Path, tiny_model_dir: Path, suite_file: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
):
    tokenizers: list[str] = []
    load_tokenizer = loading.load_tokenizer
    monkeypatch.setattr(loading, "load_tokenizer", lambda name: tokenizers.append(name) or load_tokenizer(name))
    text = suite_file.read_text()
    suite_file.write_text("chat: auto\n" + text)

    def make(name: str) -> Path:
        for step in (1, 2, 3):
            folder = save_adapter(tmp_path / name / f"checkpoint-{step}", tiny_model_dir, step)
            (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
            write_manifest(folder, step=step, resumable=False)
        write_run_json(tmp_path / name, name, finished=True)
        return tmp_path / name

    together, alone = make("together"), make("alone")
    assert score([together], suite_file, device="cpu").failed == ()
    assert len(loads) == len(tokenizers) == 1
    for step in (1, 2, 3):
        assert score([alone / f"checkpoint-{step}"], suite_file, device="cpu").failed == ()
    assert len(loads) == 1 + 3
    found, expected = scores_of(together), scores_of(alone)
    assert [figures for figures, *_ in found.values()] == [figures for figures, *_ in expected.values()]
    elsewhere = {key for key, (_, detail, _) in found.items() if "compared_on" in (detail or {})}
    assert elsewhere == {("checkpoint-2", "choices"), ("checkpoint-3", "choices")}
    for key, (_, detail, notes) in found.items():
        if key in elsewhere:
            assert detail["largest_difference"] == expected["checkpoint-1", key[1]][1]["largest_difference"]
            assert any("compared with plain passes on the same layers" in note for note in notes)
        else:
            assert (detail, notes) == expected[key][1:]


def scores_of(run: Path) -> dict[Any, Any]:
    """Returns what scores say but for times and names of runs: figures with the bytes of samples, detail, and notes."""
    return {
        (one.checkpoint, one.task): (
            (one.key, one.metrics, (run / one.samples_name).read_bytes()),
            one.detail,
            one.notes,
        )
        for one in ScoreStore(run).load()
    }


def test_a_tokenizer_that_cannot_be_read_leaves_the_garbage_collector_at_work(tmp_path: Path):
    with pytest.raises(EvalError, match="cannot load the tokenizer"):
        load_tokenizer(str(tmp_path))
    assert gc.isenabled()
