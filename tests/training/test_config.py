import dataclasses

import pytest
from omegaconf import OmegaConf

from bart_hk.config import ARCHITECTURES, BARTConfig
from bart_hk.training.config import GROUPS, ConfigError, TrainConfig, complete
from bart_hk.training.optim import CosineConfig


def test_the_model_group_is_barts_config():
    """One list of fields: the nodes have BARTConfig's, with each architecture's values."""
    fields = [field.name for field in dataclasses.fields(BARTConfig)]
    assert set(GROUPS["model"]) == set(ARCHITECTURES)
    for name, config in ARCHITECTURES.items():
        node = dataclasses.asdict(GROUPS["model"][name])
        assert node.pop("_name") == name and list(node) == fields
        assert BARTConfig(**node) == config


def test_a_group_is_a_name_or_its_keys():
    config = complete({"model": "bart_large", "lr_scheduler": {"_name": "cosine", "min_lr": 0.1}})
    assert config.model.encoder_layers == 12
    assert isinstance(config.lr_scheduler, CosineConfig) and config.lr_scheduler.min_lr == 0.1
    assert complete({"model": {"dropout": 0.5}}).model.encoder_layers == 6  # of the default
    assert complete({}).optimizer.adam_betas == [0.9, 0.999]


def test_every_form_of_a_config_is_taken():
    given = {"optimization": {"lr": [3e-5], "update_freq": [4]}, "model": {"activation_fn": "relu"}}
    config = complete(given)
    assert isinstance(config, TrainConfig)
    assert (config.optimization.lr, config.optimization.update_freq) == (3e-5, 4)
    assert complete(OmegaConf.create(given)) == complete(config) == config


def test_fairseqs_name_of_an_activation():
    config = complete({"model": {"activation_fn": "relu_squared"}})
    assert config.model.activation_fn == "relu2"


def test_fairseqs_pair_of_betas():
    assert complete({"optimizer": {"adam_betas": "(0.9,0.98)"}}).optimizer.adam_betas == [0.9, 0.98]


def test_validation_batches_follow_training_unless_told_otherwise():
    dataset = complete({"dataset": {"batch_size": 8, "max_tokens": 99}}).dataset
    assert (dataset.batch_size_valid, dataset.max_tokens_valid) == (8, 99)
    assert complete({"dataset": {"batch_size_valid": 5}}).dataset.batch_size_valid == 5


def test_the_divisor_of_texts_is_fairseqs_option():
    given = {"criterion": "label_smoothed_cross_entropy", "optimization": {"sentence_avg": True}}
    assert complete(given).criterion.sentence_avg is True
    assert complete({"criterion": "cross_entropy"}).criterion.sentence_avg is False


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ema": {"ema_decay": 1.5}}, "ema.ema_decay=1.5 must be in"),
        ({"ema": {"ema_update_freq": 0}}, "ema.ema_update_freq=0 must be at least 1"),
        ({"ema": {"decay": 0.9}}, "there is no ema.decay; did you mean ema.ema_decay?"),
        ({"model": "bart_huge"}, "model=bart_huge is not one of bart_large"),
        ({"lr_scheduler": {"_name": "step"}}, "lr_scheduler=step is not one of polynomial_decay"),
        ({"taks": {}}, "there is no taks; did you mean task?"),
        ({"model": {"dropuot": 0.1}}, "there is no model.dropuot; did you mean model.dropout?"),
        ({"model": {"encoder_layers": 1.5}}, "model.encoder_layers: Value '1.5' of type 'float'"),
        ({"optimization": {"lr": True}}, "optimization.lr=True must be a number"),
        ({"optimization": {"lr": -1e-5}}, "optimization.lr=-1e-05 must be a number, 0 or more"),
        ({"optimization": {"lr": "nan"}}, "optimization.lr=nan must be a number, 0 or more"),
        ({"optimization": {"clip_norm": -0.1}}, "optimization.clip_norm=-0.1 must be a number, 0"),
        ({"optimization": {"max_update": -5}}, "optimization.max_update=-5 must be a number, 0"),
        ({"optimization": {"max_epoch": -1}}, "optimization.max_epoch=-1 must be a number, 0"),
        ({"optimizer": {"weight_decay": -0.01}}, "optimizer.weight_decay=-0.01 must be a number"),
        (
            {"optimizer": {"adam_betas": [0.9, 1.0]}},
            r"adam_betas=\[0.9, 1.0\] must be in",
        ),
        ({"optimizer": {"adam_betas": [-0.1, 0.9]}}, "must be in"),
        ({"lr_scheduler": {"warmup_updates": -3}}, "lr_scheduler.warmup_updates=-3 must be a num"),
        (
            {"lr_scheduler": {"_name": "fixed", "warmup_updates": -3}},
            "lr_scheduler.warmup_updates=-3 must be a number, 0 or more",
        ),
        (
            {"lr_scheduler": {"_name": "cosine", "min_lr": -1.0}},
            "lr_scheduler.min_lr=-1.0 must be a number, 0 or more",
        ),
        ({"dataset": {"batch_size": -2}}, "dataset.batch_size=-2 must be at least 1"),
        ({"checkpoint": {"save_interval_updates": -2}}, "save_interval_updates=-2 must be a num"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as error:
        complete(config)
    assert "\n" not in str(error.value)
