"""mBART's frame: in rows, in what is stored, and in what the hub then does; the training of a model
is in tests/training/test_translation.py."""

import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.hub import BARTHubInterface
from bart_hk.tasks.losses import LabelSmoothedCrossEntropyConfig
from bart_hk.tasks.translation_from_pretrained_bart import (
    PretrainedTranslationConfig,
    TranslationFromPretrainedBART,
)
from tests.parameters import random_params
from tests.tasks.test_translation import TABLE
from tests.tasks.tiny import ENCODER, MODEL

LANGUAGES = ENCODER.insert_symbols(["[en_XX]", "[ro_RO]"])
EN, RO = (LANGUAGES.dictionary.index(f"[{name}]") for name in ("en_XX", "ro_RO"))
CONFIG = MODEL.replace(vocab_size=len(LANGUAGES.dictionary))


def make(tmp_path, **options):
    (tmp_path / "train.tsv").write_text(TABLE)
    given = {"source_lang": "en_XX", "target_lang": "ro_RO", "train": str(tmp_path / "train.tsv")}
    config = PretrainedTranslationConfig(**{**given, **options})
    return TranslationFromPretrainedBART(config, LabelSmoothedCrossEntropyConfig())


def test_rows_end_with_languages(tmp_path):
    task = make(tmp_path)
    config = task.model_config(CONFIG, LANGUAGES)
    assert config.decoder_start_token_id == RO and config.forced_bos_token_id is None
    task.encode(LANGUAGES, config)
    a, b = LANGUAGES.encode("aa bb"), LANGUAGES.encode("cc")
    batch = task.train.batch(np.array([0]), 20, 1)
    assert batch["src_tokens"][0, : len(a) + 2].tolist() == [*a, 2, EN]
    assert batch["target"][0, : len(b) + 2].tolist() == [*b, 2, RO]
    assert batch["prev_output_tokens"][0, : len(b) + 2].tolist() == [RO, *b, 2]
    cut = make(tmp_path, truncate_source=True, max_source_positions=5)
    cut.encode(LANGUAGES, cut.model_config(CONFIG, LANGUAGES))
    assert cut.train.sources[1].tolist() == [*LANGUAGES.encode("dd ee ff gg hh")[:3], 2, EN]


def test_the_hub_reads_and_writes_as_the_task(tmp_path):
    task = make(tmp_path, valid=str(tmp_path / "train.tsv"), generation={"max_len_b": 6})
    config = task.model_config(CONFIG, LANGUAGES)
    task.encode(LANGUAGES, config)
    params = random_params(config, 0.4)
    bart = BARTHubInterface(config, params, LANGUAGES, extras=task.extras())
    assert bart.encode("aa bb").tolist() == [*LANGUAGES.encode("aa bb"), 2, EN]
    bart.save(tmp_path / "saved")
    sources = [line.split("\t")[0] for line in TABLE.splitlines()[1:]]
    written, references = task.hypotheses(bart.model, {"model": params})
    assert bart.sample(sources, beam=5) == written and any(written)
    assert references[0] == ["cc"]
    long = bart.encode("aa bb cc dd " * 10, truncate=True)
    assert len(long) <= 20 and long[-2:].tolist() == [2, EN]


@pytest.mark.parametrize(
    ("source", "target"),
    [("[en_XX]", "[ro_RO]"), ("en_XX", "ro_RO"), ("__en_XX__", "__java__")],
    ids=["fairseq", "transformers", "plbart"],
)
def test_symbols_of_languages(tmp_path, source, target):
    encoder = ENCODER.insert_symbols([source, target])
    task = make(tmp_path, source_lang=source.strip("[]_"), target_lang=target.strip("[]_"))
    config = task.model_config(MODEL.replace(vocab_size=len(encoder.dictionary)), encoder)
    assert config.decoder_start_token_id == encoder.dictionary.index(target)
    assert task.extras()["source_suffix"] == [encoder.dictionary.index(source)]


def test_languages_have_to_be_known(tmp_path):
    with pytest.raises(DataError, match="task.source_lang and task.target_lang are needed"):
        make(tmp_path, source_lang=None, target_lang=None)
    with pytest.raises(DataError, match=r"task.target_lang=fr_XX is no language of this model: "):
        make(tmp_path, target_lang="fr_XX").model_config(CONFIG, LANGUAGES)
    assert "a" in LANGUAGES.dictionary
    with pytest.raises(DataError, match="task.source_lang=a is no language of this model: "):
        make(tmp_path, source_lang="a").model_config(CONFIG, LANGUAGES)
