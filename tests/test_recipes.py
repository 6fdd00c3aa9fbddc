"""The published recipes are the published tables, and every experiment is a whole configuration."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bart_hk.cli.train import register
from bart_hk.tasks.glue import GLUE
from bart_hk.text.sentencepiece import SHIFTED_LAYOUTS
from bart_hk.training.config import complete

CONF = Path(__file__).resolve().parent.parent / "conf"
NAMES = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix()
    for path in (CONF / "experiment").rglob("*.yaml")
)


def composed(name: str):
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=[f"experiment={name}"])
    return complete(OmegaConf.create(OmegaConf.to_container(config, resolve=True)))


# fairseq examples/bart/README.glue.md: classes, lr, sentences of an update, updates, warm-up.
PUBLISHED = {
    "mnli": (3, 5e-6, 128, 30968, 1858),
    "qnli": (2, 1e-5, 32, 33112, 1986),
    "qqp": (2, 1e-5, 32, 113272, 6796),
    "rte": (2, 1e-5, 32, 1018, 61),
    "sst2": (2, 5e-6, 128, 5233, 314),
    "mrpc": (2, 2e-5, 64, 1148, 68),
    "cola": (2, 2e-5, 64, 1334, 80),
    "stsb": (1, 2e-5, 32, 1799, 107),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_glue_is_as_published(name):
    classes, lr, sentences, updates, warmup = PUBLISHED[name]
    config = composed(f"glue/{name}")
    assert max(len(GLUE[name].labels), 1) == classes and config.task.glue == name
    assert config.optimization.lr == lr
    assert config.dataset.batch_size * config.optimization.update_freq == sentences
    assert config.dataset.max_tokens == 4400 and config.dataset.batch_size == 16
    schedule = config.lr_scheduler
    assert schedule._name == "polynomial_decay"
    assert (schedule.total_num_update, schedule.warmup_updates) == (updates, warmup)
    adam = config.optimizer
    assert (adam.adam_betas, adam.adam_eps, adam.weight_decay) == ([0.9, 0.98], 1e-8, 0.01)
    assert (config.model.dropout, config.model.attention_dropout) == (0.1, 0.1)
    assert config.optimization.clip_norm == 0 and config.optimization.max_epoch == 10
    checkpoint = config.checkpoint
    assert checkpoint.restore_file == "bart.large"
    best = "loss" if name == "stsb" else "accuracy"
    assert checkpoint.best_checkpoint_metric == best
    assert checkpoint.maximize_best_checkpoint_metric is (None if name == "stsb" else True)


def test_mnli_has_two_names():
    assert composed("mnli") == composed("glue/mnli")


# README.summarization.md: updates, batches of 2048 tokens an update on each of 8 GPUs.
@pytest.mark.parametrize(("name", "updates", "freq"), [("cnn_dm", 20000, 4), ("xsum", 15000, 2)])
def test_summarisation_is_as_published(name, updates, freq):
    config = composed(name)
    task, criterion = config.task, config.criterion
    assert task._name == "translation" and task.truncate_source and task.skip_invalid_size_inputs
    assert task.prepend_bos is False  # fairseq-preprocess puts no <s> before a text
    assert criterion._name == "label_smoothed_cross_entropy" and criterion.label_smoothing == 0.1
    assert config.optimization.lr == 3e-5 and config.optimization.clip_norm == 0.1
    assert config.optimization.update_freq == 8 * freq and config.dataset.max_tokens == 2048
    assert config.dataset.batch_size is None
    assert config.lr_scheduler.total_num_update == config.optimization.max_update == updates
    assert config.lr_scheduler.warmup_updates == 500
    adam = config.optimizer
    assert (adam.adam_betas, adam.adam_eps, adam.weight_decay) == ([0.9, 0.999], 1e-8, 0.01)
    assert (config.model.dropout, config.model.attention_dropout) == (0.1, 0.1)
    assert config.checkpoint.restore_file == "bart.large"
    from bart_hk.generation.presets import PRESETS

    assert task.generation == dict(PRESETS["cnn" if name == "cnn_dm" else "xsum"])


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_whole_and_says_what_to_expect(name):
    config = composed(name)
    assert config.task._name
    comment = (CONF / "experiment" / f"{name}.yaml").read_text().partition("defaults:")[0]
    alone = ("cnn_dm", "xsum", "mnli", "mbart_enro", "squad", "rot13", "char_lm", "latent_tatoeba")
    if name.startswith(("glue/", "mini/")) or name in alone:
        assert f"bart-hk-train experiment={name}" in comment
        assert "Published: " in comment or "Expected: " in comment


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("mini/")])
def test_a_small_recipe_says_what_it_reached(name):
    """Numbers of three seeds with and without pretraining, the time, the machine."""
    comment = (CONF / "experiment" / f"{name}.yaml").read_text().partition("defaults:")[0]
    expected = " ".join(comment.partition("Expected: ")[2].replace("#", " ").split())
    assert "seeds 1, 2 and 3" in expected and "without pretraining" in expected
    assert len(re.findall(r"\d+\.\d", expected)) >= 8  # three and three, and two medians
    assert re.search(r"(minutes|hour)\b.* on one core of an? \w+", expected)


def test_mbart_is_as_published():
    """fairseq examples/mbart/README.md."""
    config = composed("mbart_enro")
    task, adam, schedule = config.task, config.optimizer, config.lr_scheduler
    assert task._name == "translation_from_pretrained_bart"
    assert (task.source_lang, task.target_lang) == ("en_XX", "ro_RO")
    # Their --langs: the checkpoint has them, and so do tokenizers that have no dictionary.
    assert ",".join(SHIFTED_LAYOUTS["MBartTokenizer"]) == (
        "ar_AR,cs_CZ,de_DE,en_XX,es_XX,et_EE,fi_FI,fr_XX,gu_IN,hi_IN,it_IT,ja_XX,kk_KZ,ko_KR,lt_LT,"
        "lv_LV,my_MM,ne_NP,nl_XX,ro_RO,ru_RU,si_LK,tr_TR,vi_VN,zh_CN"
    )
    assert config.criterion._name == "label_smoothed_cross_entropy"
    assert config.criterion.label_smoothing == 0.2 and config.common.seed == 222
    assert (adam.adam_betas, adam.adam_eps, adam.weight_decay) == ([0.9, 0.98], 1e-6, 0.0)
    assert schedule._name == "polynomial_decay"
    assert (schedule.total_num_update, schedule.warmup_updates) == (40000, 2500)
    assert config.optimization.max_update == 40000 and config.optimization.clip_norm == 0
    assert config.optimization.lr == 3e-5 and config.optimization.update_freq == 2
    assert config.dataset.max_tokens == 1024 and config.dataset.batch_size is None
    assert (config.model.dropout, config.model.attention_dropout) == (0.3, 0.1)
    assert config.model.encoder_normalize_before and config.model.decoder_normalize_before
    assert config.checkpoint.restore_file == (
        "https://dl.fbaipublicfiles.com/fairseq/models/mbart/mbart.cc25.v2.tar.gz"
    )


def test_squad_is_as_its_header_says():
    """Published are the results alone; windows and epochs are BERT's, the rest is GLUE's."""
    config = composed("squad")
    task, adam, schedule = config.task, config.optimizer, config.lr_scheduler
    assert task._name == config.criterion._name == "question_answering"
    assert (task.max_positions, task.doc_stride, task.max_question_length) == (384, 128, 64)
    assert config.optimization.lr == 1.5e-5 and config.optimization.max_epoch == 2
    assert config.dataset.batch_size * config.optimization.update_freq == 48
    assert config.optimization.max_update == 0 and config.optimization.clip_norm == 0
    assert (schedule._name, schedule.warmup_ratio) == ("polynomial_decay", 0.06)
    assert (adam.adam_betas, adam.adam_eps, adam.weight_decay) == ([0.9, 0.98], 1e-8, 0.01)
    assert (config.model.dropout, config.model.attention_dropout) == (0.1, 0.1)
    assert config.checkpoint.restore_file == "bart.large"
    assert config.checkpoint.best_checkpoint_metric == "f1"
    header = (CONF / "experiment" / "squad.yaml").read_text().partition("defaults:")[0]
    assert "Published: EM 88.8, F1 94.6 (1.1, dev file); 86.1 and 89.2 (2.0)" in header
