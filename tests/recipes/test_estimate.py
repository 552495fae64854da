"""What a run will need, by arithmetic on shapes, against transformers' counts and published formulas."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from posttrain.chat_templates.errors import InputError
from posttrain.recipes import architectures, check, estimate, needs
from posttrain.recipes.architectures import Architecture
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.estimate import Machine, ModelSize, Setup
from posttrain.recipes.load import load

ROOT = Path(__file__).parents[2]
SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 7, "num_attention_heads": 4}
DECODER = {**SMALL, "vocab_size": 300, "num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**DECODER, "attention_bias": True, "mlp_bias": True},
    "mistral": {**DECODER, "tie_word_embeddings": False, "sliding_window": 16},
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 24},
    "gemma3_text": {**DECODER, "head_dim": 24, "sliding_window": 16},
    "modernbert": {**SMALL, "vocab_size": 300, "pad_token_id": 0, "local_attention": 16},
    "gpt2": {"n_embd": 64, "n_layer": 7, "n_head": 4, "n_positions": 128, "vocab_size": 300, "pad_token_id": 0},
}
DROPOUT = ("attn_pdrop", "resid_pdrop", "embd_pdrop")


def shape_of(kind: str, **changed: Any) -> Architecture:
    found = architectures.read({"model_type": kind, **CONFIGS[kind], **changed})
    assert found is not None
    return found


def test_every_published_shape_has_as_many_parameters_as_its_authors_say() -> None:
    published = yaml.safe_load((ROOT / "recipes" / "architectures.yaml").read_text())
    for name, entry in published.items():
        found = architectures.read(entry["config"])
        assert found is not None, name
        assert found.parameters() == entry["parameters"], name


@pytest.mark.parametrize("kind", CONFIGS)
def test_parameters_and_windows_are_those_of_the_model_that_transformers_makes(kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

    shape = shape_of(kind)
    config: Any = AutoConfig.for_model(kind, **CONFIGS[kind], num_labels=3)
    language = AutoModelForMaskedLM if kind == "modernbert" else AutoModelForCausalLM
    with torch.device("meta"):
        for outputs, maker in ((None, language), (3, AutoModelForSequenceClassification)):
            model: Any = maker.from_config(config)
            assert shape.parameters(outputs) == sum(weight.numel() for weight in model.parameters())
    window = config.local_attention if kind == "modernbert" else getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or [f"{'sliding' if window else 'full'}_attention"] * 7
    assert shape.windows == tuple(window if name == "sliding_attention" else None for name in types)


def a_setup(shape: Architecture, **changed: Any) -> Setup:
    total = shape.parameters()
    size = ModelSize(total, total, shape.table)
    setup = Setup(shape, size, Machine(), batch=1, rows_each=1, length=8, weight_bytes=4, compute_bytes=4)
    return replace(setup, **changed)


def test_zero_shards_what_its_paper_says() -> None:
    """Rajbhandari et al. 2020, section 5: 2 + 2 + 12 bytes a weight, shared by stage; 4 + 4 + 8 without."""
    setup = a_setup(shape_of("llama"), compute_bytes=2)
    weights = setup.size.total
    for stage, shards in ((1, (1, 1, 8)), (2, (1, 8, 8)), (3, (8, 8, 8))):
        parts = estimate.moments(replace(setup, machine=Machine(processes=8, zero=stage)))["end of the backward pass"]
        assert parts["optimizer"] == 12 * weights / shards[2]
        assert parts["gradients"] == pytest.approx(2 * weights / shards[1] + 4 * setup.architecture.table)
        gathered = 2 * (setup.architecture.table + setup.architecture.linear / 7) if stage == 3 else 0
        assert parts["weights"] == pytest.approx(2 * weights / shards[0] + gathered)
    alone = estimate.moments(replace(setup, compute_bytes=4))["update"]
    assert (alone["weights"], alone["optimizer"]) == (4 * weights, 8 * weights)
    muon = estimate.moments(replace(setup, compute_bytes=4, optimizer="muon"))["update"]["optimizer"]
    assert muon == 8 * weights - 4 * setup.architecture.linear  # one moment for matrices of hidden layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("optim", "options"),
    [
        *(("adamw_torch_fused", ""), ("adamw_bnb_8bit", ""), ("paged_adamw_32bit", ""), ("lion_8bit", "")),
        *(("lion_32bit", ""), ("ademamix", ""), ("ademamix_8bit", ""), ("rmsprop", "momentum=0.9"), ("sgd", "")),
        *(("sgd", "momentum=0.9"), ("schedule_free_sgd", ""), ("schedule_free_adamw", ""), ("stable_adamw", "")),
        *(("galore_adamw", "rank=8"), ("apollo_adamw", "rank=8")),
    ],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU", "ignore:This implementation of AdamW")
def test_an_optimizer_keeps_what_it_is_said_to(
    make_recipe: Callable[..., Path], optim: str, options: str, dtype: str
) -> None:
    """Of a small model's tensors after a step."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

    wide = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "tie_word_embeddings": False}
    fields: dict[str, Any] = {"optim": optim, **({"optim_args": options} if options else {})}
    if "rank" in options:
        fields["optim_target_modules"] = "all-linear"
    config = {**CONFIGS["llama"], **wide}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **config), dtype=getattr(torch, dtype))
    shape = architectures.read({"model_type": "llama", **config})
    assert shape is not None
    loaded = load(make_recipe(**fields, sections={"model": {"name_or_path": "none", "dtype": dtype}}))
    setup = needs.setup_of(loaded, shape, Machine(gpu=False))
    args = TrainingArguments(output_dir=str(loaded.path.parent), use_cpu=True, **fields)
    try:
        optimizer: Any = Trainer(model, args).create_optimizer()
    except ImportError as error:
        pytest.skip(str(error))
    getattr(optimizer, "train", lambda: None)()
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    tables = {"qmap1", "qmap2"}  # of all tensors together
    states = [value for state in optimizer.state.values() for key, value in state.items() if key not in tables]
    held = [getattr(value, "ortho_matrix", value) for value in states]
    kept = sum(tensor.nbytes for tensor in held if isinstance(tensor, torch.Tensor) and tensor.numel() > 1)
    few = 0.01 * model.num_parameters()
    assert estimate.moments(setup)["update"]["optimizer"] == pytest.approx(kept, rel=0.02, abs=few)


def test_gradients_are_projected_where_the_recipe_says(make_recipe: Callable[..., Path]) -> None:
    """GaLore keeps 2 r max(n, m) + r min(n, m) numbers of a matrix (Zhao et al. 2024, table 1), AdamW 2 n m."""
    shape = shape_of("llama")

    def state(target: Any) -> float:
        recipe = make_recipe(optim="galore_adamw", optim_args="rank=8", optim_target_modules=target)
        return estimate.moments(needs.setup_of(load(recipe), shape, Machine(gpu=False)))["update"]["optimizer"]

    saved = 7 * 4 * (2 * 160 * 64 - (2 * 8 * 160 + 8 * 64))
    assert state(["up_proj"]) == state(r".*\.mlp\.up_proj") == 8 * shape.parameters() - saved
    assert state(["mlp"]) == 8 * shape.parameters() - 3 * saved
    with pytest.raises(RecipeError, match="optim_target_modules: no regular expression"):
        state(["*up_proj"])


def test_rows_of_new_tokens_cost_a_copy_of_their_table_and_its_gradient() -> None:
    shape = shape_of("gemma3_text")
    setup = a_setup(shape, ranks={"mlp.up_proj": 2}, size=ModelSize(shape.parameters(), 1000, shape.table))
    grown = replace(setup, size=replace(setup.size, trainable=1000, new_tokens=128))
    before, after = (sum(estimate.moments(one)["loss"].values()) for one in (setup, grown))
    assert after - before == (4 + 4) * shape.table


def test_compute_is_that_of_palm_with_windows() -> None:
    shape = shape_of("gemma3_text")
    n, heads = shape.linear + shape.table, 4 * 24
    full, _ = estimate.flops_per_token(a_setup(shape, length=8))
    assert full == 6 * n + 12 * 7 * heads * 8  # Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T
    long, _ = estimate.flops_per_token(a_setup(shape, length=64))
    assert long == 6 * n + 12 * heads * (6 * 16 + 1 * 64)  # one layer in six sees all
    model, again = estimate.flops_per_token(a_setup(shape_of("llama"), checkpointing=True))
    assert model / 3 == again + 2 * shape_of("llama").table  # all of the forward pass but the output layer


@pytest.mark.parametrize(
    ("tied", "saved", "counted", "trained"),
    [
        (False, ["embed_tokens", "lm_head"], 2, 2),
        (False, ["model.embed_tokens"], 0, 1),
        (True, ["embed_tokens"], 2, 1),
        (True, ["embed_tokens", "lm_head"], 2, 1),
    ],
)
def test_tables_beside_adapters_compute_the_gradient_of_the_output_layer_alone(
    make_recipe: Callable[..., Path], tied: bool, saved: list[str], counted: int, trained: int
) -> None:
    """Forward and the input's gradient are computed without them, too, and looking up a row multiplies nothing."""
    shape = shape_of("llama", tie_word_embeddings=tied)
    setups = []
    for more in ({}, {"modules_to_save": saved}):
        loaded = load(make_recipe(sections={"adapter": {"type": "lora", "r": 2, **more}}))
        setups.append(needs.setup_of(loaded, shape, Machine()))
    without, beside = (estimate.flops_per_token(setup)[0] for setup in setups)
    assert beside - without == counted * shape.table
    assert setups[1].size.trainable - setups[0].size.trainable == trained * shape.table


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ({}, 1),
        ({"teacher.top_k": 8, "trainer.num_train_epochs": 4}, 1 / 4),  # asked once of each row
        ({"trainer.alpha": 1.0}, 0),  # which weighs nothing that it says
    ],
)
def test_a_distillation_computes_its_teachers_forward_passes(said: dict[str, Any], passes: float) -> None:
    path = ROOT / "recipes/library/smollm2-135m/distill.yaml"
    loaded = load(path, [f"{key}={value}" for key, value in said.items()])
    student, teacher = (
        architectures.named(str(spec.name_or_path), {}) for spec in (loaded.recipe.model, loaded.recipe.teacher)
    )  # type: ignore[union-attr]
    assert isinstance(student, Architecture)
    assert isinstance(teacher, Architecture)
    setup = needs.setup_of(loaded, student, Machine())
    alone, _ = estimate.flops_per_token(a_setup(student, length=2048))
    read, _ = estimate.flops_per_token(a_setup(teacher, length=2048))
    assert estimate.flops_per_token(setup)[0] == pytest.approx(alone + passes * read / 3)  # forward: a third of a step
    assert ("teacher" in setup.others) == (passes == 1)
    assert needs.token_flops(loaded, setup.size) == estimate.flops_per_token(a_setup(student, length=0))[0]


@pytest.mark.parametrize(
    ("stage", "options", "sections", "passes"),
    [
        ("grpo", {}, {}, 2),  # the reference's, and sampling
        ("grpo", {"beta": 0.0}, {}, 1),
        ("grpo", {"num_iterations": 2}, {}, 3 / 2),  # and what the answers were sampled with
        ("rloo", {"num_iterations": 4}, {}, 3 / 4),
        ("ppo", {"num_iterations": 1}, {}, 4),  # and the critic's
        ("ppo", {"num_iterations": 2}, {}, 4 / 2),
        ("ppo", {"num_iterations": 2}, {"critic": {"shared": True}}, 3 / 2),
    ],
)
def test_an_answer_is_sampled_and_scored_once_however_often_it_is_learnt_from(
    make_recipe: Callable[..., Path], stage: str, options: Any, sections: Any, passes: float
) -> None:
    rewards = [{"model": "HuggingFaceTB/SmolLM2-135M-Instruct"}]
    shape = shape_of("llama")
    loaded = load(make_recipe(stage, sections={**sections, "rewards": rewards}, **options))
    setup = needs.setup_of(loaded, shape, Machine())
    alone = replace(setup, passes=0, readers={}, length=0)
    more = estimate.flops_per_token(replace(alone, passes=setup.passes))[0] - estimate.flops_per_token(alone)[0]
    assert more == passes * 2 * (shape.linear + shape.table)
    assert setup.readers["reward model 1"].passes == 1 / options.get("num_iterations", 1)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 3),  # the reference's, and both models' of mismatched answers
        ({"loss_type": "apo_zero_unpaired"}, 1),  # which has no such answers
        ({"precompute_ref_log_probs": True}, 1),  # the model's own of them
    ],
)
def test_kto_reads_mismatched_answers_where_its_loss_has_them(
    make_recipe: Callable[..., Path], options: dict[str, Any], passes: float
) -> None:
    assert needs.setup_of(load(make_recipe("kto", **options)), shape_of("llama"), Machine()).passes == passes


@pytest.mark.parametrize("stage", ["dpo", "kto"])
@pytest.mark.parametrize(("start", "held"), [("pissa", True), (True, False)])
def test_a_reference_beside_an_adapter_is_held_though_what_it_says_is_computed_beforehand(
    make_recipe: Callable[..., Path], stage: str, start: Any, held: bool
) -> None:
    sections = {"adapter": {"type": "lora", "init_lora_weights": start}}
    loaded = load(make_recipe(stage, sections=sections, precompute_ref_log_probs=True))
    assert ("reference" in needs.setup_of(loaded, shape_of("llama"), Machine()).others) == held


def test_modules_that_nobody_looked_for_are_said(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(sections={"adapter": {"type": "lora", "target_modules": ["q_porj"]}})
    assert check.check_all([recipe], [], {}, read_data=False) == 0
    assert "adapter.target_modules: whether the model has such modules was not looked for" in capsys.readouterr().out
    assert check.check_all([recipe], ["adapter.target_modules=all-linear"], {}, read_data=False) == 0
    assert "looked for" not in capsys.readouterr().out


def test_a_teacher_of_an_unknown_shape_is_said_to_be_in_no_figure() -> None:
    path = ROOT / "recipes/library/smollm2-135m/distill.yaml"
    found = needs.lines(load(path, ["teacher.name_or_path=org/absent"]), needs.Assumptions())
    assert found[-1] == "teacher: in none of these figures: there is no config.json of org/absent here"


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "eager": {"attention": "eager"},
    "packed": {"masked": True},
    "checkpointed": {"checkpointing": True},
    "autocast": {"mixed": True, "compute_bytes": 2},
    "lora": {"ranks": 4},
    "bf16": {"weight_bytes": 2, "compute_bytes": 2},
    "lora on bf16": {"ranks": 4, "weight_bytes": 2, "compute_bytes": 2},
    "dropout": {},
    "lora on bf16, autocast": {"ranks": 4, "weight_bytes": 2, "compute_bytes": 2, "mixed": True},
}
CASES = [
    *((kind, "plain") for kind in CONFIGS),
    *((kind, name) for kind in ("gemma3_text", "llama") for name in VARIANTS if name != "dropout"),
    ("gpt2", "dropout"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "variant"), sorted(set(CASES)))
def test_activations_are_what_autograd_saves(kind: str, variant: str) -> None:
    """Of the body of a model with random weights, without a loss; parts in the length of a row alone are left out."""
    import torch
    from transformers import AutoConfig, AutoModel

    changed = dict(VARIANTS[variant])
    dropped = {} if kind != "gpt2" or variant == "dropout" else dict.fromkeys(DROPOUT, 0.0)
    shape = shape_of(kind, **dropped)
    if "ranks" in changed:
        changed["ranks"] = dict.fromkeys(shape.matrices, changed["ranks"])
    setup = a_setup(shape, batch=2, length=128, loss="head", machine=Machine(gpu=False), **changed)
    dtype = torch.bfloat16 if setup.weight_bytes == 2 else torch.float32
    config = AutoConfig.for_model(kind, **CONFIGS[kind], **dropped)
    model: Any = AutoModel.from_config(config, dtype=dtype, attn_implementation=setup.attention)
    if setup.ranks:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))  # in float32, as in training
    model.train()
    if setup.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(1, 300, (2, 128))
    packed = {"position_ids": (torch.arange(128) % 64).expand(2, -1)} if setup.masked else {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=setup.mixed):
        model(input_ids=ids, use_cache=False, **packed)
    casts = 2 * shape.linear if setup.mixed and dtype == torch.float32 else 0  # counted among the weights
    last = setup.tokens * shape.hidden * setup.weight_bytes  # which the loss would have saved
    found = sum(storage.nbytes() for storage in saved.values())
    assert estimate.activations(setup)[0] - last + casts == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize(
    ("kind", "stage"), [("prompt_tuning", "sft"), ("prefix_tuning", "sft"), ("prefix_tuning", "classify")]
)
def test_virtual_tokens_have_the_parameters_that_peft_gives_them(
    kind: str, stage: str, make_recipe: Callable[..., Path]
) -> None:
    from peft import get_peft_config, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    adapter = {"type": kind, "num_virtual_tokens": 5}
    loaded = load(make_recipe(stage, sections={"adapter": adapter}))
    headed = stage == "classify"
    maker: Any = AutoModelForSequenceClassification if headed else AutoModelForCausalLM
    model = maker.from_config(AutoConfig.for_model("llama", **CONFIGS["llama"], num_labels=3))
    task = {"peft_type": kind.upper(), "task_type": "SEQ_CLS" if headed else "CAUSAL_LM", "num_virtual_tokens": 5}
    trained, _ = get_peft_model(model, get_peft_config(task)).get_nb_trainable_parameters()
    assert estimate.size_of(loaded, shape_of("llama"), 3 if headed else None).trainable == trained


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    setup = a_setup(shape_of("qwen3"))
    budget = 30e6
    most = estimate.largest_batch(setup, budget)
    sizes = [sum(estimate.peak(replace(setup, batch=batch))[1].values()) for batch in (most, most + 1)]
    assert most > 1
    assert sizes[0] <= budget < sizes[1]
    assert estimate.largest_batch(setup, 1e3) == 0


def test_check_estimates_from_a_config_alone(
    make_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    config = {"model_type": "llama", **CONFIGS["llama"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    recipe = make_recipe(sections={"model": {"name_or_path": str(tmp_path / "model")}, "lora": {"r": 2}})
    assumed = needs.Assumptions(device="H100", processes=4, tokens=1e6, price=2.0, table=True)
    assert check.check_all([recipe], [], {}, read_data=False, assumed=assumed) == 0
    said = capsys.readouterr().out
    shape = shape_of("llama")
    assert f"{shape.parameters():,}" in said
    adapters = 7 * 2 * sum(matrix.inputs + matrix.outputs for matrix in shape.matrices.values())
    assert f"({adapters:,})" in said
    for words in ("GiB on each of 4 GPUs", "fits into 90% of H100", "at 2 an hour", "ZeRO-3", "qlora"):
        assert words in said
    assert check.check_all([recipe], [], {}, read_data=False, assumed=replace(assumed, price=None)) == 0
    assert "None" not in capsys.readouterr().out
    assert check.check_all([recipe], [], {}, read_data=False, assumed=replace(assumed, device="H10")) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_deepspeed_config_of_its_own_is_read_as_accelerate_s_words_for_it_are(tmp_path: Path) -> None:
    own = {
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}
    }
    (tmp_path / "z3.json").write_text(json.dumps(own))
    given = {"distributed_type": "DEEPSPEED", "num_processes": 4}
    given["deepspeed_config"] = {"deepspeed_config_file": str(tmp_path / "z3.json")}
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(given))
    machine = needs.machine_of(needs.Assumptions(accelerate=str(config)))
    assert machine == Machine(processes=4, zero=3, offload_optimizer=True)
    assert machine.engine == "DeepSpeed"
    (tmp_path / "z3.json").unlink()
    with pytest.raises(
        RecipeError, match=r"z3\.json cannot be read as JSON; its path leads from the current directory"
    ):
        needs.machine_of(needs.Assumptions(accelerate=str(config)))


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [\n"])
def test_an_accelerate_config_that_is_none_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml"):
        needs.machine_of(needs.Assumptions(accelerate=str(tmp_path / "mine.yaml")))


def test_what_is_not_known_of_a_model_is_said(
    make_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(sections={"model": {"name_or_path": "nobody/nothing"}})
    assert check.check_all([recipe], [], {}, read_data=False) == 0
    assert "there is no config.json of nobody/nothing here" in capsys.readouterr().out


def test_the_library_is_estimated_whole_without_network(capsys: pytest.CaptureFixture[str]) -> None:
    found = {path: yaml.safe_load(path.read_text()) for path in (ROOT / "recipes" / "library").rglob("*.yaml")}
    steps = {path for path, text in found.items() if "stage" in text and "@" in path.read_text()}  # of pipelines
    steps |= {path for path, text in found.items() if "output" in text}  # methods of `synthesize`
    paths = [path for path, text in found.items() if {"stage", "steps", "arms"} & text.keys() and path not in steps]
    assert check.check_all(paths, [], {}, read_data=False) == 0
    said = capsys.readouterr().out
    trained = 0
    for path in paths:
        steps_of = found[path].get("steps", [{"recipe": path}] if "stage" in found[path] else [])
        trained += sum("recipe" in step for step in steps_of)
        trained += len(found[path].get("arms", ())) * len(found[path].get("sizes", {"all": []}))
    assert said.count("memory: ") == said.count("compute: ") == trained
