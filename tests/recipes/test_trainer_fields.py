"""What is read from the source of a configuration class is what the imported class says."""

import dataclasses
import importlib

import pytest
from posttrain.recipes.stages import STAGES
from posttrain.recipes.trainer_fields import fields_of, problems

SFT = "trl:trainer/sft_config.py:SFTConfig"


@pytest.mark.parametrize("config", sorted({stage.config for stage in STAGES.values()}))
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
