"""What is read from the source of a configuration class is what the imported class says."""

import dataclasses
import importlib

import pytest
from posttrain.recipes.adapter_types import TYPES
from posttrain.recipes.stage_table import STAGES
from posttrain.recipes.trainer_fields import fields_of, problems

SFT = "trl:trainer/sft_config.py:SFTConfig"


CONFIGS = sorted({*(stage.config for stage in STAGES.values()), *(kind.config for kind in TYPES.values())})


@pytest.mark.parametrize("config", CONFIGS)
def test_source_and_class_agree_on_names_and_literal_defaults(config: str) -> None:
    package, file, name = config.split(":")
    module = importlib.import_module(f"{package}.{file.removesuffix('.py').replace('/', '.')}")
    imported = {f.name: f for f in dataclasses.fields(getattr(module, name)) if f.init}
    read = fields_of(config)
    assert read.keys() == imported.keys()
    for name, field in read.items():
        if field.default is not None:
            assert field.default == imported[name].default, name


def test_defaults_and_owned_keys_of_each_stage_exist() -> None:
    for name, stage in STAGES.items():
        fields = fields_of(stage.config)
        assert set(stage.defaults) <= set(fields), name
        assert not problems(stage.defaults, fields), name
        missing = set(stage.owned) - set(fields) - {"overwrite_output_dir"}  # gone from transformers, still often typed
        assert not missing, name


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"learning_rate": "fast"}, "must be float"),
        ({"learning_rate": True}, "must be float"),
        ({"max_length": 1.5}, "must be int | None"),
        ({"lr_scheduler_type": "cosin"}, "has no value 'cosin'"),
        ({"packing": "yes"}, "must be bool"),
        ({"per_device_batch_size": 4}, "unknown key"),
    ],
)
def test_a_wrong_value_is_named(values: dict, expected: str) -> None:
    found = problems(values, fields_of(SFT))
    assert len(found) == 1
    assert expected in found[0][1]


def test_right_values_pass() -> None:
    values = {"learning_rate": 1, "max_length": None, "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"a": 1}}
    assert problems(values, fields_of(SFT)) == []


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        ("sft", {"learning_rate": -1.0}),
        ("sft", {"learning_rate": float("nan")}),
        ("sft", {"weight_decay": float("inf")}),
        ("sft", {"per_device_train_batch_size": 0}),
        ("sft", {"adam_beta2": 2.0}),
        ("sft", {"seed": -1}),
        ("sft", {"seed": 2**32}),
        ("sft", {"num_train_epochs": 0}),
        ("sft", {"max_steps": 0}),
        ("sft", {"max_steps": -2}),
        ("sft", {"save_steps": 2.5}),
        ("sft", {"max_steps": 10**40}),
        ("sft", {"lr_scheduler_kwargs": {"min_lr": float("nan")}}),
        ("sft", {"packing_strategy": "ffd"}),
        ("sft", {"loss_type": "sigmoid"}),
        ("sft", {"report_to": ["tensorboard", "wanbd"]}),
        ("dpo", {"beta": 0.0}),
        ("dpo", {"loss_type": ["sigmoid", "hinje"]}),
        ("grpo", {"num_generations": None}),
        ("grpo", {"scale_rewards": "std"}),
        ("grpo", {"top_p": 0.0}),
        ("ppo", {"temperature": -1.0}),
        ("classify", {"train_sampling_strategy": "batch_rebalance"}),
        ("distill_on_policy", {"beta": 1.5}),
    ],
)
def test_a_number_or_word_that_no_field_takes_is_refused_before_anything_is_imported(stage: str, values: dict) -> None:
    (found,) = problems(values, fields_of(STAGES[stage].config))
    assert found[0] in values


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        ("sft", {"max_steps": -1, "save_steps": 0.1, "logging_steps": 1, "learning_rate": 0.0, "optim": "sgd"}),
        ("grpo", {"beta": 0.0, "scale_rewards": "none", "num_generations": 2, "top_k": 0}),
        ("distill_on_policy", {"beta": 1.0}),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.0], "label_smoothing": 0.49}),
    ],
)
def test_values_at_the_edge_of_their_range_pass(stage: str, values: dict) -> None:
    assert problems(values, fields_of(STAGES[stage].config)) == []


def test_the_tables_name_fields_that_some_stage_has_and_allow_every_default() -> None:
    from posttrain.recipes.trainer_fields import _RANGE_OF, _WORDS

    configs = [stage.config for stage in STAGES.values()] + [kind.config for kind in TYPES.values()]
    fields = {name for config in configs for name in fields_of(config)}
    assert {name.rpartition(".")[2] for name in (*_RANGE_OF, *_WORDS)} <= fields
    for name, stage in STAGES.items():
        given = {key: field.default for key, field in fields_of(stage.config).items() if field.default is not None}
        assert problems(given, fields_of(stage.config)) == [], name


def test_the_words_are_those_of_the_libraries() -> None:
    import inspect
    import re
    from typing import get_args

    from posttrain.data_tools.pack import Strategy
    from posttrain.recipes.trainer_fields import _WORDS
    from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.utils.logging import log_levels
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

    words = {name: set(text.split()) for name, text in _WORDS.items()}
    assert words["packing_strategy"] == set(get_args(Strategy))
    assert words["report_to"] == {"none", "all", *INTEGRATION_TO_CALLBACK}
    assert words["cache_implementation"] == set(ALL_CACHE_IMPLEMENTATIONS)
    assert words["log_level"] == {"passive", *log_levels} == words["log_level_replica"]
    losses = re.findall(r"self\.loss_type (?:==|in) (\[.*?\]|\S+):", inspect.getsource(GRPOTrainer._compute_loss))
    assert words["GRPOConfig.loss_type"] == set(re.findall(r'"(\w+)"', " ".join(losses)))
    assert words["KTOConfig.loss_type"] <= set(re.findall(r'"(\w+)"', inspect.getsource(KTOTrainer)))
