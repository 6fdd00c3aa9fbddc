"""`bart_hk.load` of fairseq's folders, archives and ensembles, and of models that are resized."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import bart_hk
from bart_hk.checkpoint.fairseq_file import write_fairseq
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import BARTConfig
from bart_hk.errors import CheckpointError
from bart_hk.hub.opening import open_model
from bart_hk.text import TextEncoder, train_bpe
from tests.parameters import random_params

SIZES = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_ffn_embed_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "max_source_positions": 32,
    "max_target_positions": 32,
}
TEXT = TextEncoder.gpt2()
CONFIG = BARTConfig(vocab_size=len(TEXT.dictionary), **SIZES)


def head(classes: int) -> HeadFiles:
    rng = np.random.default_rng(3)
    shapes = {"dense": (16, 16), "out_proj": (16, classes)}
    params = {
        name: {"w": rng.standard_normal(shape, np.float32), "b": np.zeros(shape[1], np.float32)}
        for name, shape in shapes.items()
    }
    return HeadFiles(params, [f"class{i}" for i in range(classes)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A fairseq folder with two checkpoints, of which the first has a head."""
    path = tmp_path_factory.mktemp("fairseq")
    write_fairseq(path, CONFIG, random_params(CONFIG, seed=1), {"mood": head(3)}, TEXT)
    other = path / "other"
    write_fairseq(other, CONFIG, random_params(CONFIG, seed=2), text=TEXT)
    (other / "model.pt").rename(path / "second.pt")
    shutil.rmtree(other)
    return path


def test_a_fairseq_folder_its_checkpoint_and_its_archive_are_one_model(folder, tmp_path):
    archive = tmp_path / "some.model.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name in ("model.pt", "dict.txt", "label/dict.txt"):
            tar.add(folder / name, f"some.model/{name}")
    models = [
        open_model(folder),
        open_model(folder / "model.pt"),
        open_model(archive, cache_dir=tmp_path / "cache"),
    ]
    expected = random_params(CONFIG, seed=1)
    for (model,), text in models:
        assert model.config == CONFIG
        assert text.encode("Hello world!") == TEXT.encode("Hello world!")
        assert model.heads["mood"].labels == ["class0", "class1", "class2"]
        for path, leaves in expected.items():
            for name, array in leaves.items():
                np.testing.assert_array_equal(model.params[path][name], array)


def test_an_ensemble_has_the_mean_of_its_members_probabilities(folder):
    members = [bart_hk.load(folder, name) for name in ("model.pt", "second.pt")]
    both = bart_hk.load(folder, "model.pt:second.pt")
    by_path = open_model(f"{folder / 'model.pt'}:{folder / 'second.pt'}")
    assert len(by_path.members) == 2
    with pytest.raises(ValueError, match="an ensemble of 2 models cannot be saved as one"):
        both.save(folder / "nowhere")
    sentence = "Hello world!"
    apart = [np.exp(bart.score([sentence])[0]["positional_scores"]) for bart in members]
    expected = np.log(np.mean(apart, axis=0))
    (found,) = both.score([sentence])
    np.testing.assert_allclose(found["positional_scores"], expected, atol=1e-5)
    row = both.encode(sentence)
    options = {"beam": 2, "max_len_b": 40, "max_len_a": 0}
    (best, _) = both.generate(row, **options)
    assert len(best["tokens"]) > 1
    # What a search says of its result is what scoring it says; with room to grow, too.
    alone = [bart.generate(row, **options)[0]["tokens"].tolist() for bart in members]
    assert best["tokens"].tolist() not in alone
    scorer = both._engine.scorer
    target = np.asarray(best["tokens"])
    (again,) = scorer.score(both._generating_params, [np.asarray(row)], [target], attention=True)
    np.testing.assert_allclose(again["positional_scores"], best["positional_scores"], atol=1e-4)
    np.testing.assert_allclose(again["attention"], best["attention"], atol=1e-5)


def test_members_may_be_directories_and_of_any_format(folder, tmp_path):
    paths = []
    for i, name in enumerate(("model.pt", "second.pt")):
        paths.append(tmp_path / f"native{i}")
        bart_hk.load(folder, name).save(paths[-1])
    sentence = "Hello world!"

    def scores(*members: Path) -> np.ndarray:
        bart = bart_hk.load(":".join(map(str, members)))
        return bart.score([sentence])[0]["positional_scores"]

    expected = scores(folder / "model.pt", folder / "second.pt")
    assert not np.array_equal(expected, scores(paths[0]))
    for members in (paths, (folder / "model.pt", paths[1]), (paths[0], folder / "second.pt")):
        np.testing.assert_array_equal(scores(*members), expected)
    other = tmp_path / "other:native"  # a colon may be in a name
    paths[0].rename(other)
    assert len(open_model(other).members) == 1
    fields = json.loads((paths[1] / "config.json").read_text())
    (paths[1] / "config.json").write_text(json.dumps(fields | {"eos_token_id": 3}))
    with pytest.raises(ValueError, match="native1 make no ensemble: eos_token_id is 2 .* and 3 in"):
        open_model(f"{folder / 'model.pt'}:{paths[1]}")


def test_the_temperature_of_an_ensemble_is_its_members(folder):
    both = bart_hk.load(folder, "model.pt:second.pt")
    row = np.asarray(both.encode("Hello"))
    (found,) = both.generate(row, beam=1, temperature=2.0, max_len_a=0, max_len_b=2)
    generator, params = both._engine.generator, both._generating_params
    target, prev = found["tokens"], np.append(2, found["tokens"][:-1]).astype(np.int32)
    log_probs = []
    for bart, tree in zip(generator.bart.members, params, strict=True):
        decoded = bart.decode(tree, prev[None], bart.encode(tree, row[None]))
        logits = np.asarray(bart.project(tree, decoded.features), np.float64)[0] / 2.0
        log_probs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    mean = np.log(np.mean(np.exp(log_probs), axis=0))
    expected = mean[np.arange(len(target)), target]
    np.testing.assert_allclose(found["positional_scores"], expected, atol=1e-4)


def test_members_that_speak_of_other_ids_make_no_ensemble(folder, tmp_path):
    for name in ("model.pt", "dict.txt"):
        shutil.copy(folder / name, tmp_path)
    smaller = CONFIG.replace(vocab_size=CONFIG.vocab_size - 1)
    write_fairseq(
        tmp_path / "x", smaller, random_params(smaller), text=TEXT.fit(smaller.vocab_size)
    )
    (tmp_path / "x" / "model.pt").rename(tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt make no ensemble: vocab_size is 50265 .* 50264"):
        open_model(tmp_path, "model.pt:b.pt")


def test_members_with_dictionaries_that_differ_make_no_ensemble(folder, tmp_path):
    shutil.copy(folder / "second.pt", tmp_path)
    name = f"{folder / 'model.pt'}:{tmp_path / 'second.pt'}"
    assert len(open_model(name).members) == 2  # it has none of its own
    lines = (folder / "dict.txt").read_text().splitlines()
    (tmp_path / "dict.txt").write_text("\n".join(lines))
    assert len(open_model(name).members) == 2
    lines[6], lines[9] = lines[9], lines[6]
    (tmp_path / "dict.txt").write_text("\n".join(lines))
    symbols = [lines[i].split()[0] for i in (9, 6)]
    message = f"the id 10 is {symbols[0]!r} in the first's dictionary and {symbols[1]!r} in the"
    with pytest.raises(ValueError, match=message):
        open_model(name)


def test_members_that_are_missing_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"third\.pt of the ensemble .* is not there"):
        open_model(f"{folder / 'model.pt'}:{folder / 'third.pt'}")
    with pytest.raises(FileNotFoundError, match=r"holds no third\.pt \(checkpoints there: model"):
        open_model(folder, "model.pt:third.pt")


def test_a_model_that_lies_deeper_is_pointed_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a" / "b")
    with pytest.raises(FileNotFoundError, match=r"but .*/a/b does: give that"):
        open_model(tmp_path)


def test_fairseqs_names_of_the_tokenizers_files(folder, tmp_path):
    """`BARTModel.from_pretrained(..., gpt2_encoder_json=..., gpt2_vocab_bpe=...)`."""
    text = train_bpe(["the cat sat on the mat, the hat"] * 3, 280)
    config = CONFIG.replace(vocab_size=len(text.dictionary))
    write_fairseq(tmp_path, config, random_params(config), text=text)
    (tmp_path / "tokenizer_config.json").unlink()  # which is ours
    files = [tmp_path / "bpe" / name for name in ("encoder.json", "vocab.bpe")]
    files[0].parent.mkdir()
    for file in files:
        (tmp_path / file.name).rename(file)
    expected = [0, *text.encode("the hat"), 2]
    assert bart_hk.BARTModel.from_pretrained(tmp_path).encode("the hat").tolist() != expected
    options = {"bpe": "gpt2", "gpt2_encoder_json": files[0], "gpt2_vocab_bpe": str(files[1])}
    bart = bart_hk.BARTModel.from_pretrained(tmp_path, **options)
    assert bart.encode("the hat").tolist() == expected
    for wrong in ({"gpt2_vocab_bpe": None}, {"sentencepiece_model": files[0]}):
        with pytest.raises(ValueError, match="give the first two, or the third alone"):
            bart_hk.BARTModel.from_pretrained(tmp_path, **options | wrong)


def test_what_loading_cannot_change_is_refused(folder, tmp_path):
    bart_hk.load(folder).save(tmp_path)
    with pytest.raises(ValueError, match="has encoder_layers=1; loading cannot change that"):
        bart_hk.load(tmp_path, encoder_layers=2, dropout=0.3)
    assert bart_hk.load(tmp_path, dropout=0.3).config.dropout == 0.3
    with pytest.raises(TypeError, match=r"new_symbols is a list of names, such as \['<x>'\]"):
        bart_hk.load(tmp_path, new_symbols="<x>")


def test_multi_label_heads_give_each_class_a_probability_of_its_own(folder, tmp_path):
    bart = bart_hk.load(folder)
    bart.heads["mood"].multi_label = True
    row = bart.encode("Hello world!")
    logits = bart.predict("mood", row, return_logits=True)
    np.testing.assert_allclose(
        bart.predict("mood", row), -np.log1p(np.exp(-np.asarray(logits))), rtol=1e-4, atol=1e-6
    )
    bart.save(tmp_path)
    assert bart_hk.load(tmp_path).heads["mood"].multi_label


def test_positions_and_symbols_are_added_on_request(folder):
    (model,), text = open_model(folder, max_positions=50, new_symbols=["[xx]", "[yy]"])
    mask = CONFIG.vocab_size - 1
    assert (model.config.max_source_positions, model.config.vocab_size) == (50, mask + 3)
    assert [text.dictionary.index(s) for s in ("[xx]", "[yy]", "<mask>")] == [
        mask,
        mask + 1,
        mask + 2,
    ]
    table = random_params(CONFIG, seed=1)["embed_tokens"]["embeddings"]
    np.testing.assert_array_equal(model.params["embed_tokens"]["embeddings"][mask + 2], table[mask])
    bart = bart_hk.load(folder, max_positions=50, new_symbols=["[xx]"])
    assert bart.extract_features([0] + [5] * 45 + [2]).shape == (1, 47, 16)


def test_more_positions_are_read_by_what_was_fine_tuned_on_fewer(folder, tmp_path):
    bart = bart_hk.load(folder)
    bart.extras["max_positions"] = 20
    bart.save(tmp_path)
    about = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert about["model_max_length"] == bart.config.max_source_positions
    text = " film" * 60
    assert len(bart_hk.load(tmp_path).encode(text, truncate=True)) == 20
    assert len(bart_hk.load(tmp_path, max_positions=50).encode(text, truncate=True)) == 50


def test_a_data_folder_gives_dictionary_and_label_names(folder, tmp_path):
    data = tmp_path / "data-bin"
    (data / "input0").mkdir(parents=True)
    (data / "label").mkdir()
    shutil.copy(folder / "dict.txt", data / "input0")
    (data / "label" / "dict.txt").write_text("bad 3\nfine 2\nsuperb 1\nmadeupword0000 0\n")
    (tmp_path / "model").mkdir()
    plain = HeadFiles(head(3).params)
    write_fairseq(
        tmp_path / "model",
        CONFIG,
        random_params(CONFIG),
        {"sentence_classification_head": plain},
        TEXT,
    )
    (tmp_path / "model" / "dict.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no dictionary in .*data_name_or_path"):
        open_model(tmp_path / "model")
    bart = bart_hk.load(tmp_path / "model", data_name_or_path=str(data))
    assert bart.heads["sentence_classification_head"].labels == ["bad", "fine", "superb"]
    assert bart.classify("a film", head="sentence_classification_head")[0] in (
        "bad",
        "fine",
        "superb",
    )


def test_a_dictionary_of_another_layout_is_refused_with_both_sizes(folder, tmp_path):
    shutil.copy(folder / "model.pt", tmp_path)
    TextEncoder.gpt2("bart.base").save_fairseq(tmp_path)
    with pytest.raises(CheckpointError, match=r"51201 symbols.*50265.*bart\.large's own archive"):
        open_model(tmp_path)
