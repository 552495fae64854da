"""What ``check`` passes ``train`` trains, what it refuses ``train`` refuses, each in one line that says where."""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from posttrain.recipes.apart import keeps_documents_apart
from posttrain.recipes.check import check_all, save_tiny
from posttrain.recipes.decisions import check_packed_rows, decide, trainer_config
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load
from posttrain.recipes.needs import Assumptions
from posttrain.recipes.train import build
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..conftest import build_tokenizer
from . import mutations
from .conftest import STAGE_RECIPES

Make = Callable[..., Path]
LORA = {"lora": {"r": 4}}

# stage, sections, trainer fields, and what both say; None where both must be content
TABLE: list[tuple[str, dict[str, Any], dict[str, Any], str | None]] = [
    ("sft", {}, {}, None),
    ("sft", {}, {"max_length": None}, None),
    ("sft", {}, {"assistant_only_loss": False, "loss_type": "dft"}, None),
    ("sft", {"lora": {"target_modules": "q_prj|v_prj"}}, {}, "no module's whole name matches"),
    ("sft", {"lora": {"target_modules": ["q_proj", "v_prooj"], "modules_to_save": ["lm_haed"]}}, {}, "'v_proj'"),
    ("sft", {"lora": {"target_modules": "q_proj"}}, {}, "say [q_proj]"),
    ("sft", {"adapter": {"type": "lora", "rank_pattern": {"q_porj": 2}}}, {}, "did you mean 'q_proj'"),
    ("sft", {"adapter": {"type": "lora", "alpha_pattern": {"layers.7.self_attn.q_proj": 2}}}, {}, "matches none of"),
    ("sft", {"adapter": {"type": "lora", "exclude_modules": ["q_porj"]}}, {}, "did you mean 'q_proj'"),
    ("sft", {"adapter": {"type": "lora", "target_parameters": ["q_porj.weight"]}}, {}, "no parameter 'q_porj.weight'"),
    ("sft", {"adapter": {"type": "lora", "trainable_token_indices": [9999]}}, {}, "there is no token 9999"),
    (
        "sft",
        {
            "adapter": {
                "type": "lora",
                "target_modules": "all-linear",
                "rank_pattern": {"layers.1.self_attn.q_proj": 2, "mlp.*": 3},
                "exclude_modules": ".*v_proj",
            }
        },
        {},
        None,
    ),
    ("sft", {"lora": {"target_modules": ["mlp"]}}, {}, "LlamaMLP, which takes no adapter"),
    ("sft", {"lora": {"target_modules": ".*norm"}}, {}, "LlamaRMSNorm, which takes no adapter"),
    ("sft", {"lora": {"modules_to_save": ["act_fn"]}}, {}, "has no weights to train"),
    ("sft", {"lora": {"modules_to_save": ["layers"]}}, {}, "'layers' holds all layers"),
    ("sft", {"lora": {"modules_to_save": ["q_proj"]}, "quantization": "nf4"}, {}, "'q_proj' is quantized"),
    ("sft", {"lora": {"modules_to_save": ["lm_head", "norm"]}, "quantization": "nf4"}, {}, None),
    ("sft", {"lora": {"use_dora": True}, "quantization": "int8"}, {}, "int8 weights under DoRA on a CPU"),
    ("sft", {"lora": {"use_dora": True}, "quantization": "nf4"}, {}, None),
    ("classify", {"lora": {"target_modules": ["score"]}}, {}, "names the head alone"),
    ("classify", {"classify": {"labels": ["0", "1", "0"]}}, {}, "names the class '0' twice"),
    ("sft", {}, {"report_to": "wandb"}, "pip install wandb"),
    ("sft", {}, {"report_to": "kubeflow"}, "kubeflow needs KUBEFLOW_TRAINER_SERVER_URL"),
    ("sft", {}, {"optim": "adamw_torch_4bit"}, "pip install torchao"),
    ("sft", {}, {"use_liger_kernel": True}, "pip install liger-kernel"),
    ("sft", {}, {"lr_scheduler_type": "warmup_stable_decay"}, "over how many steps to decay"),
    ("sft", {}, {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1}}, None),
    (
        "sft",
        {},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}, "warmup_steps": 2},
        "2 steps of warmup and 2 of decay are more than the run's 3",
    ),
    ("sft", {}, {"optim_args": "beta1=0.8"}, "adamw_torch_fused reads no option 'beta1'; AdamW's own are"),
    ("sft", {}, {"optim": "sgd", "optim_args": "momentum=0.9,nestrov=true"}, "sgd reads no option 'nestrov'"),
    ("sft", {}, {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"}, None),
    ("sft", {}, {"optim": "sgd", "optim_args": "momentum"}, "'momentum' is not of the form name=value"),
    ("sft", {}, {"router_aux_loss_coef": 0.1}, "the model has none"),
    ("sft", {}, {"save_strategy": "best"}, "metric_for_best_model"),
    ("sft", {}, {"torch_compile_backend": "inductr"}, "'inductor'"),
    ("sft", {}, {"push_to_hub": True}, "HF_HUB_OFFLINE is set"),
    ("sft", {}, {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"nothing": 1}}, "nothing"),
    ("sft", {}, {"dataloader_drop_last": True, "per_device_train_batch_size": 1000}, "no step"),
    (
        "sft",
        {"model": {"name_or_path": "{model}", "chat_template": "chatml", "attn_implementation": "spda"}},
        {},
        "spda",
    ),
    ("sft", {"model": {"name_or_path": "{model}", "use_kernels": True}}, {}, "pip install 'kernels>="),
    ("sft", {"model": {"name_or_path": "{model}", "attn_implementation": "of/the_hub"}}, {}, "pip install 'kernels>="),
    ("dpo", {"model": {"name_or_path": "{marks}"}}, {}, None),
    ("dpo", {}, {"f_divergence_type": "js_divergence", "loss_type": "ipo"}, None),
    ("dpo", LORA, {"sync_ref_model": True}, "drop one of the two"),
    ("dpo", {}, {"label_smoothing": 0.1}, "label_smoothing is not read by loss_type sigmoid; say loss_type: robust"),
    ("kto", {}, {"label_smoothing_factor": 0.1}, "label_smoothing_factor: is not for the trainer section"),
    ("sft", {}, {"label_smoothing_factor": 0.1, "loss_type": "dft"}, "not read by loss_type dft"),
    ("grpo", {}, {"loss_type": "cispo", "epsilon_high": 0.28}, "say epsilon_high: 5.0"),
    ("grpo", {}, {"loss_type": "cispo", "epsilon_high": 5.0}, None),
    ("grpo", {}, {"num_generations": 3}, "divisible"),
    ("grpo", {"rewards": [{"function": "math:nothing"}]}, {}, "nothing"),
    ("grpo", {"rewards": [{"function": "builtins:len"}]}, {}, "cannot be called: missing a required argument: 'obj'"),
    ("grpo", {"rewards": [{"function": "{here}/wrong.py:asks"}]}, {}, "missing a required argument: 'solution'"),
    ("grpo", {"rewards": [{"function": "{here}/wrong.py:strips"}]}, {}, "has no attribute 'strip'"),
    ("ppo", {"gold": {"function": "{here}/wrong.py:words"}}, {}, "neither a finite number nor None"),
    ("sft", {"score": {"suite": ""}}, {}, "there is no suite ''"),
    ("sft", {"score": {"suite": "{here}"}}, {}, "there is no suite"),
    ("sft", {"score": {"suite": "{here}/suite.yaml"}}, {}, "suite.yaml:1: taks: unknown key; did you mean 'tasks'?"),
    ("sft", {}, {"torch_compile_backend": "tvm"}, "tvm does not work on this machine"),
    ("sft", {}, {"learning_rate": 7.0}, "learning_rate: must be in [0, 1]"),
    (
        "pretrain",
        {"model": {"config": {"model_type": "llama", "hidden_size": 16}, "tokenizer": "{model}"}},
        {},
        "not a multiple of the number of attention heads",
    ),
    ("ppo", {}, {"kl_coef": -1.0}, "kl_coef: must be in"),
    ("classify", {}, {"alpha": 0.3}, "the recipe has none"),
]


# Stage, section, which of `mutations.save_models` it names, and what both say; None where both must be content.
MODELS: list[tuple[str, str, str, str | None]] = [
    ("sft", "model", "cut", "cannot load the model"),
    ("sft", "model", "bare", "model.safetensors"),
    ("sft", "model", "lacking", "lacks the weights model.layers.1.mlp.up_proj.weight"),
    ("sft", "model", "narrow", "or has them in other sizes"),
    ("sft", "model", "torn", "config.json"),
    ("sft", "model", "mute", "cannot load the tokenizer"),
    ("sft", "model", "adapter", "holds an adapter"),
    ("grpo", "rewards", "reward", None),
    ("grpo", "rewards", "foreign_reward", None),
    ("grpo", "rewards", "classifier", "has 2 outputs instead of one"),
    ("grpo", "rewards", "model", "not a sequence classifier"),
    ("grpo", "rewards", "adapter", "does not name its base model"),
    ("ppo", "critic", "reward", None),
    ("ppo", "critic", "foreign", "another vocabulary"),
    ("ppo", "critic", "cut", "critic: cannot load the model"),
    ("distill", "teacher", "reward", "lacks the weights lm_head.weight"),
    ("distill", "teacher", "foreign", "its vocabulary is not the student's"),
    ("distill_on_policy", "teacher", "bare", "cannot load the teacher"),
    ("classify", "teacher", "classifier", None),
    ("classify", "teacher", "three", "its classes are not the student's"),
    ("classify", "teacher", "lacking", "its classes are not the student's"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return mutations.save_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(("stage", "section", "name", "says"), MODELS)
def test_models_are_opened_by_check_as_by_train(
    make_recipe: Make, models: dict[str, str], stage: str, section: str, name: str, says: str | None
) -> None:
    chat = {} if stage == "classify" else {"chat_template": "chatml"}
    named: Any = {"name_or_path": models[name]}
    own = named if section == "model" else {"name_or_path": models["model"]}
    given: dict[str, Any] = {"model": own | chat}
    if section != "model":
        given[section] = [{"model": models[name]}] if section == "rewards" else named
    check, train = mutations.outcomes(make_recipe(stage, sections=given, max_steps=3), [])
    assert mutations.disagreement(check, train) is None, (check, train)
    assert check.kind == ("ok" if says is None else "refused"), check
    assert says is None or (says in check.text and models[name] in train.text), (check, train)


@pytest.mark.parametrize(
    ("method", "quantization", "way"),
    [
        ("gptq", None, "say quantization: nf4"),
        ("bitsandbytes", "nf4", "say quantization: nf4"),
        ("mxfp4", "nf4", "drop"),
    ],
)
def test_weights_that_are_saved_quantized_are_no_base(
    make_recipe: Make, tiny_model_dir: Path, tmp_path: Path, method: str, quantization: str | None, way: str
) -> None:
    base = shutil.copytree(tiny_model_dir, tmp_path / "packed")
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (base / "config.json").write_text(json.dumps(config))
    sections: dict[str, Any] = {"model": {"name_or_path": str(base), "chat_template": "chatml"}, **LORA}
    recipe = make_recipe(sections=sections | ({"quantization": quantization} if quantization else {}))
    for outcome in mutations.outcomes(recipe, []):
        assert outcome.kind == "refused", outcome
        assert f"are saved quantized ({method})" in outcome.text
        assert f"name its 16-bit base in model.name_or_path, and {way}" in outcome.text


def test_each_problem_of_an_adapter_stands_in_a_line_of_its_own(make_recipe: Make) -> None:
    wrong = {"r": 4, "target_modules": ["q_prooj", "v_proj"], "modules_to_save": ["lm_haed"]}
    recipe = make_recipe(sections={"lora": wrong})
    where = {
        key: number for number, line in enumerate(recipe.read_text().splitlines(), 1) for key in wrong if key in line
    }
    for outcome in mutations.outcomes(recipe, []):
        for key, name in (("target_modules", "q_prooj"), ("modules_to_save", "lm_haed")):
            assert f"{recipe}:{where[key]}: lora.{key}: the model has no module '{name}'; did you mean" in outcome.text
        assert len(outcome.text.strip().splitlines()) == 2, outcome


def test_check_says_that_the_warmup_is_longer_than_the_run(make_recipe: Make) -> None:
    check, _ = mutations.outcomes(make_recipe("sft", max_steps=3, warmup_steps=100), [])
    assert "warning: trainer.warmup_steps: 100 of 3 steps" in check.text


def test_held_out_rows_that_nothing_is_evaluated_on_are_told(
    make_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_recipe("sft", max_steps=1).parent / "messages.jsonl"
    for strategy, told in (("no", True), ("epoch", False)):
        loaded = load(
            make_recipe("sft", max_steps=1, eval_strategy=strategy), [f"data.eval={{path: {rows}, limit: 2}}"]
        )
        decide(loaded, trainer_config(loaded))
        assert ("warning: data.eval is not evaluated on: say trainer.eval_strategy" in capsys.readouterr().err) == told


def test_check_decides_for_the_processes_that_are_to_train(
    make_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe("sft", max_steps=-1, num_train_epochs=1, warmup_steps=10)  # 80 rows, 4 of a process a step
    schedule = ["data.train.name=a", "data.schedule=[{share: 1, weights: {a: 1}}]", "trainer.max_steps=10"]
    told: dict[tuple[int, bool], tuple[int, str]] = {}
    for processes, overrides in itertools.product((1, 8), ([], schedule)):
        code = check_all([recipe], overrides, {}, read_data=True, assumed=Assumptions(processes=processes))
        said = capsys.readouterr()
        told[processes, bool(overrides)] = code, said.out + said.err
    assert "one process: 20 steps of 4 rows" in told[1, False][1]
    assert "warning" not in told[1, False][1]
    assert "8 processes: 3 steps of 32 rows" in told[8, False][1]
    assert "warning: trainer.warmup_steps: 10 of 3 steps" in told[8, False][1]
    assert "the run ends after 50.0% of it (on one process)" in told[1, True][1]
    assert told[8, True][0] == 2
    assert "one pass over 80 rows, and the run takes 3.33" in told[8, True][1]


@pytest.mark.parametrize(("stage", "sections", "trainer", "says"), TABLE)
def test_check_and_train_decide_alike(
    make_recipe: Make,
    tiny_model_dir: Path,
    tmp_path: Path,
    stage: str,
    sections: dict[str, Any],
    trainer: dict[str, Any],
    says: str | None,
) -> None:
    tokenizer: Any = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    marks = save_tiny(tokenizer, tmp_path / "marks", None)  # its template marks no assistant's words
    (tmp_path / "suite.yaml").write_text("taks: []")
    (tmp_path / "wrong.py").write_text(
        "def asks(completions, solution): return [0.0] * len(completions)\n"
        "def strips(completions, **columns): return [float(len(text.strip())) for text in completions]\n"
        "def words(completions): return ['good'] * len(completions)\n"
    )
    given = json.dumps(sections).replace("{model}", str(tiny_model_dir)).replace("{marks}", marks)
    given = json.loads(given.replace("{here}", str(tmp_path)))
    recipe = make_recipe(stage, sections=given, **{"max_steps": 3, **trainer})
    check, train = mutations.outcomes(recipe, [])
    assert mutations.disagreement(check, train) is None, (check, train)
    assert check.kind == ("ok" if says is None else "refused"), check
    for outcome in (check, train):
        assert says is None or says in outcome.text


@pytest.mark.parametrize("packing", [False, True])
def test_rows_that_are_longer_than_a_model_was_made_for_are_refused_or_told(
    make_recipe: Make, tmp_path: Path, packing: bool
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "hello " * 400}) + "\n")
    data = {"train": {"path": "long.jsonl", "raw": True}}
    fields = {"max_steps": 1, "max_length": 512, "packing": packing}
    check, train = mutations.outcomes(make_recipe("pretrain", sections={"data": data}, **fields), [])
    assert (check.kind, train.kind) == ("ok", "ok"), (check, train)
    assert "tokens, and the model was made for 256; say trainer.max_length: 256" in check.text
    tokenizer: Any = build_tokenizer()
    gpt2 = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    given = {"data": data, "model": {"name_or_path": str(tmp_path / "gpt2")}}
    for outcome in mutations.outcomes(make_recipe("pretrain", "learned", sections=given, **fields), []):
        assert outcome.kind == "refused", outcome
        assert "data.train: the longest row has" in outcome.text


def test_rows_are_not_too_long_for_a_model_that_says_no_length(make_recipe: Make, tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer: Any = build_tokenizer()
    bloom = BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(bloom).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "hello " * 2100}) + "\n")
    sections = {
        "data": {"train": {"path": "long.jsonl", "raw": True}},
        "model": {"name_or_path": str(tmp_path / "bloom")},
    }
    check, train = mutations.outcomes(
        make_recipe("pretrain", sections=sections, max_steps=1, max_length=4096, packing=False), []
    )
    assert (check.kind, train.kind) == ("ok", "ok"), (check, train)
    assert "made for" not in check.text


@pytest.mark.parametrize(
    ("wrong", "spec", "says"),
    [
        ("2 ", {}, "'2 ' differs from '2' only in how it is written"),
        ("3", {"labels": ["0", "1", "2"]}, "no class '3' (1 rows)"),
        ("inf", {"problem": "regression"}, "'inf' is not a number"),
        (" ", {}, "empty label"),
    ],
)
def test_a_label_that_cannot_be_learned_is_refused_by_its_row(
    make_recipe: Make, tmp_path: Path, wrong: str, spec: dict[str, Any], says: str
) -> None:
    labels = [str(number % 3) for number in range(39)] + [wrong]
    rows = [json.dumps({"text": f"What is {number}?", "label": label}) for number, label in enumerate(labels)]
    (tmp_path / "labels.jsonl").write_text("\n".join(rows))
    data = {"train": {"path": "labels.jsonl", "format": "classification"}}
    check, train = mutations.outcomes(make_recipe("classify", sections={"data": data, "classify": spec}), [])
    assert (check.kind, train.kind) == ("refused", "refused")
    for outcome in (check, train):
        assert says in outcome.text
        assert "labels.jsonl:40" in outcome.text


def test_a_metric_that_no_evaluation_gives_is_refused_in_one_line(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe("sft", max_steps=4, save_steps=2, eval_steps=2, eval_strategy="steps")
    rows = f"{tmp_path / 'messages.jsonl'}, format: messages"
    best = ["data.eval={path: " + rows + "}", "trainer.load_best_model_at_end=true"]
    check, train = mutations.outcomes(recipe, [*best, "trainer.metric_for_best_model=bleu"])
    assert (check.kind, train.kind) == ("refused", "refused"), train
    assert "eval_bleu" in check.text
    assert "the first evaluation failed" in train.text


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has one")
def test_activations_are_not_moved_from_an_accelerator_that_is_not_there(make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"trainer\.activation_offloading moves activations from an accelerator"):
        trainer_config(load(make_recipe(activation_offloading=True)))


CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 5}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        *(
            ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": steps}}, says)
            for says, several in (("over how many steps to decay", (0.2, 1.5, -1, "10%", None, True)), (None, (0, 200)))
            for steps in several
        ),
        (CONSTANT, "warmup_steps: lr_scheduler_type constant has no warmup.*constant_with_warmup"),
        (CONSTANT | {"optim": "schedule_free_radam"}, "constant has no warmup"),
        (CONSTANT | {"optim": "schedule_free_adamw"}, None),
        (CONSTANT | {"optim": "schedule_free_adamw", "warmup_steps": 0.1}, "schedule_free_adamw divides by it"),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}, None),
        ({"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"min_lr": 0}}, "with_warmup reads none"),
        ({"optim": "galore_adamw", "weight_decay": 0.1}, "trainer.weight_decay: galore_adamw does not read it"),
        ({"optim": "apollo_adamw", "adam_beta2": 0.95}, "trainer.adam_beta2: apollo_adamw does not read it"),
    ],
)
def test_fields_that_an_optimizer_or_a_schedule_would_pass_over_are_refused(
    make_recipe: Make, fields: dict[str, Any], says: str | None
) -> None:
    if (optim := fields.get("optim")) is not None:
        pytest.importorskip("schedulefree" if optim.startswith("schedule") else f"{optim.partition('_')[0]}_torch")
        fields = fields | ({} if optim.startswith("schedule") else {"optim_target_modules": "all-linear"})
    loaded = load(make_recipe(**fields))
    with pytest.raises(RecipeError, match=says) if says else contextlib.nullcontext():
        trainer_config(loaded)


@pytest.mark.parametrize("kind", ["CP", "SP"])
def test_packed_documents_are_not_cut_over_processes(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What cuts rows knows of no documents in them."""
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{kind}_SIZE", "2")
    check_packed_rows(load(make_recipe("sft")))
    with pytest.raises(RecipeError, match=r"trainer\.packing: documents of a row would see each other"):
        check_packed_rows(load(make_recipe("sft", packing=True)))


_SLIDING: Any = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4, "head_dim": 16}
_EXPERTS: Any = _SLIDING | {"num_local_experts": 2, "num_experts_per_tok": 1}
_CONVOLVED: Any = {"layer_types": ["full_attention", "conv"], "intermediate_size": 48}
_MODELS: list[tuple[str, dict[str, Any], bool]] = [
    ("llama", {"intermediate_size": 48}, True),
    ("gemma3_text", _SLIDING, True),
    ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, False),
    ("gpt_oss", _EXPERTS, False),  # masks without positions
    ("lfm2", _CONVOLVED, False),  # of its two kinds of layers one
    ("mamba", {"state_size": 4}, False),
]


def small_config(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    heads = {"num_attention_heads": 2}
    heads = {} if kind == "mamba" else heads if kind == "opt" else heads | {"num_key_value_heads": 2}
    return {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 2, **heads, **fields}


@pytest.mark.parametrize(("kind", "fields", "apart"), _MODELS)
def test_packed_rows_need_a_model_that_keeps_their_documents_apart(
    make_recipe: Make, tiny_model_dir: Path, kind: str, fields: dict[str, Any], apart: bool
) -> None:
    model = {"config": small_config(kind, fields), "tokenizer": str(tiny_model_dir)}
    says = rf"trainer\.packing: documents of a row would see each other in the model, of type {kind}"
    for packing in (False, True):
        loaded = load(make_recipe("pretrain", sections={"model": model}, max_length=128, packing=packing))
        with contextlib.nullcontext() if apart or not packing else pytest.raises(RecipeError, match=says):
            decide(loaded, trainer_config(loaded))


@pytest.mark.parametrize(("kind", "fields", "apart"), [_MODELS[0], _MODELS[-1]])
def test_kernels_for_flat_rows_are_looked_at_where_they_run(
    monkeypatch: pytest.MonkeyPatch, kind: str, fields: dict[str, Any], apart: bool
) -> None:
    """A processor in the accelerator's place: restarting positions of one row part documents there too."""
    fields = small_config(kind, fields)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields, vocab_size=64))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cpu"))
    assert keeps_documents_apart(model, flat=True) == apart
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert keeps_documents_apart(model, flat=True) is None


def test_a_teacher_keeps_packed_documents_apart_too(make_recipe: Make, tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = AutoConfig.for_model(**small_config(*_MODELS[2][:2]), vocab_size=len(tokenizer))
    for saved in (AutoModelForCausalLM.from_config(config), tokenizer):
        saved.save_pretrained(tmp_path / "opt")
    teacher = {"teacher": {"name_or_path": str(tmp_path / "opt")}}
    for packing in (False, True):
        loaded = load(make_recipe("distill", sections=teacher, packing=packing))
        with pytest.raises(RecipeError, match="in the teacher, of type opt") if packing else contextlib.nullcontext():
            decide(loaded, trainer_config(loaded))


def test_a_message_names_its_recipe_and_line(make_recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = make_recipe("sft", "wrong", report_to="wandb")
    assert check_all([make_recipe("sft", "right"), wrong], [], {}, read_data=True) == 2
    line = next(n for n, text in enumerate(wrong.read_text().splitlines(), 1) if "report_to" in text)
    assert capsys.readouterr().err.startswith(f"{wrong}:{line}: trainer.report_to: wandb needs the package wandb")


@pytest.mark.slow
def test_mutated_recipes_are_decided_alike_and_without_a_traceback(models: dict[str, str]) -> None:
    _, found = mutations.run(40, 7, models)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "stage",
    [
        *("classify", "grpo", "sft"),  # a stage of each way of taking rows
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in sorted(set(STAGE_RECIPES) - {"kto", "classify", "grpo", "sft"})
        ),
    ],
)
def test_rows_are_trained_on_in_the_order_of_the_data_section(make_recipe: Make, stage: str) -> None:
    def rows_in_turn(order: str) -> list[int]:
        loaded = load(make_recipe(stage), [f"data.order={order}"])
        trainer: Any = build(decide(loaded, trainer_config(loaded)))
        return list(dict.fromkeys(trainer._get_train_sampler(trainer.train_dataset)))

    kept, shuffled = rows_in_turn("given"), rows_in_turn("shuffled")
    assert kept == list(range(len(kept)))
    assert len(kept) >= 80
    assert sorted(shuffled) == sorted(range(len(shuffled))) != shuffled


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        ("sft", ["data.order=given", "trainer.train_sampling_strategy=random"], "train_sampling_strategy shuffles"),
        ("grpo", ["data.order=given", "trainer.shuffle_dataset=true"], "trainer.shuffle_dataset shuffles the rows"),
        ("kto", ["data.order=given"], "kto shuffles its rows"),
        ("sft", ["data.schedule=[{share: 1, weights: {a: 1}}]"], "and the run takes 3"),
        ("sft", ["data.schedule=[{share: 1, weights: {a: 1}}]", "trainer.max_steps=21"], "and the run takes 1.05"),
    ],
)
def test_what_would_undo_an_order_is_refused(
    make_recipe: Make, tmp_path: Path, stage: str, overrides: list[str], message: str
) -> None:
    recipe = yaml.safe_load(make_recipe(stage, max_steps=-1, num_train_epochs=3).read_text())
    recipe["data"]["train"]["name"] = "a"
    path = tmp_path / "ordered.yaml"
    path.write_text(yaml.safe_dump(recipe))
    loaded = load(path, overrides)
    with pytest.raises(RecipeError, match=message):
        decide(loaded, trainer_config(loaded))
