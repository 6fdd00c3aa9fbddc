"""Model directories: what we write comes back, what transformers wrote is read."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.huggingface_config import config_from_json, transformers_lacks
from bart_hk.config import BARTConfig
from bart_hk.errors import CheckpointError

PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
PAD_0 = {"pad_token_id": 0, "bos_token_id": 51, "eos_token_id": 52, "decoder_start_token_id": 53}
UNTIED = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}

# What transformers can express, and what it cannot.
COMMON = {
    "post_norm": {},
    "mbart": {**PRE_NORM, "no_scale_embedding": False, "forced_bos_token_id": None},
    "pad_0": {**PAD_0, "unk_token_id": 7, "forced_eos_token_id": None},
    "untied": UNTIED,
    "tied_output": {"share_all_embeddings": False},
    "bias": {"final_logits_bias": True},
    "pooler": {"pooler_activation_fn": "relu", "activation_fn": "gelu_10"},
    "prelu": {"activation_fn": "prelu"},
    "xielu": {"activation_fn": "xielu"},
}
OURS_ALONE = {
    "layernorm_embedding": {"layernorm_embedding": False},
    "encoder_normalize_before": {"decoder_normalize_before": True},
    "max_source_positions": {"max_source_positions": 30},
    "attention_head_dim": {"attention_head_dim": 7},
    "flavour": {"flavour": "encoder_only", "share_all_embeddings": False},
    "source_encoder_layers": {"source_encoder_layers": 1, "source_vocab_size": 31},
    "encoder_learned_pos": {"encoder_learned_pos": False},
    "decoder_learned_pos": {"decoder_learned_pos": False},
    "position_offset": {"position_offset": 1, "pad_token_id": 0, "unk_token_id": None},
}


@pytest.mark.parametrize("variant", [*COMMON, *OURS_ALONE])
@pytest.mark.parametrize("dtype", [np.float32, bfloat16])
def test_round_trip(tmp_path, small, random_params, random_head, assert_equal, variant, dtype):
    config = small(**{**COMMON, **OURS_ALONE}[variant])
    params = random_params(config, dtype)
    heads = {
        "mood": random_head(labels=["bad", "fair", "good"]),
        "stars": random_head(inner=8, classes=1, regression=True),
    }
    extras = {"generation": {"beam": 4}, "generation_config": {"num_beams": 4}}
    write_model(tmp_path / "a", config, params, heads, extras)
    for directory in ("a", "b"):
        found = read_model(tmp_path / directory)
        assert found.config == config
        assert_equal(found.params, params)
        assert found.heads.keys() == heads.keys()
        for name, head in heads.items():
            assert_equal(found.heads[name].params, head.params)
            assert found.heads[name].labels == head.labels
            assert found.heads[name].regression == head.regression
        assert found.extras == extras
        write_model(tmp_path / "b", *vars(found).values())
    for name in sorted(p.name for p in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("variant", [v for v in COMMON if v != "pooler"])
def test_round_trip_as_a_classifier(
    tmp_path, small, random_params, random_head, assert_equal, variant
):
    config = small(**COMMON[variant])
    params = random_params(config)
    heads = {"mood": random_head(labels=["bad", "fair", "good"]), "other": random_head(inner=8)}
    write_model(tmp_path, config, params, heads, head="mood")
    stored = load_file(tmp_path / "model.safetensors")
    assert {n for n in stored if not n.startswith("model.")} == {
        f"classification_head.{m}.{leaf}"
        for m in ("dense", "out_proj")
        for leaf in ("weight", "bias")
    }
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["architectures"][0].endswith("BartForSequenceClassification")
    assert about["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert about["problem_type"] == "single_label_classification"
    found = read_model(tmp_path)
    assert found.config == config
    assert_equal(found.params, params)
    assert list(found.heads) == ["mood", "other"]
    for name, head in heads.items():
        assert_equal(found.heads[name].params, head.params)
        assert found.heads[name].labels == head.labels


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(BARTConfig)])
def test_every_field_of_the_config_survives(tmp_path, small, random_params, field):
    """Changed on its own: config.json has it, or bart_hk.json has."""
    default = small()
    value = getattr(default, field)
    if isinstance(value, bool):
        other = not value
    elif isinstance(value, str):
        others = {
            "flavour": "decoder_only",
            "latent_pooling": "mean",
            "latent_activation": "identity",
        }
        other = others.get(field, "relu")
    elif isinstance(value, int):
        other = 2 * value or 4
    else:
        other = 7 if value is None else value + 0.25
    change = {field: other}
    if field == "share_decoder_input_output_embed":
        change["share_all_embeddings"] = False
    if field.startswith("source_"):  # one needs the other
        change |= {"source_encoder_layers": 4, "source_vocab_size": 40}
    if field in ("n_latent_tokens", "latent_token_size"):
        change |= {"n_latent_tokens": 4, "latent_token_size": 4}
    config = default.replace(**change)
    assert getattr(config, field) != value
    write_model(tmp_path, config, random_params(config))
    assert read_model(tmp_path).config == config


def test_zero_bias_is_dropped_and_written(tmp_path, small, random_params):
    config = small()
    write_model(tmp_path, config, random_params(config))
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    np.testing.assert_array_equal(stored["final_logits_bias"], np.zeros((1, 60), np.float32))
    assert read_model(tmp_path).config == config
    # As transformers would store it after training: the bias itself says that there is one.
    bias = np.arange(60, dtype=np.float32)[None]
    save_file({**stored, "final_logits_bias": bias}, path, {"format": "pt"})
    found = read_model(tmp_path)
    assert found.config == config.replace(final_logits_bias=True)
    np.testing.assert_array_equal(found.params["final_logits_bias"]["b"], bias[0])


@pytest.mark.parametrize(
    "odd",
    [
        {"flavour": "decoder_only", "encoder_attention_heads": 7},
        {"flavour": "encoder_only", "decoder_attention_heads": 7},
        {"attention_head_dim": 5, "encoder_attention_heads": 3},
    ],
    ids=lambda odd: next(iter(odd.values())),
)
def test_what_would_be_no_bart_of_transformers(tmp_path, small, random_params, assert_equal, odd):
    """Heads that do not divide the width: there is no such stack, or they have one of their own."""
    config = small(**odd)
    params = random_params(config)
    write_model(tmp_path, config, params)
    found = read_model(tmp_path)
    assert found.config == config
    assert_equal(found.params, params)
    about = json.loads((tmp_path / "config.json").read_text())
    name = next(iter(odd))
    for wrong in ("both", 2.5):
        (tmp_path / "config.json").write_text(json.dumps(about | {name: wrong}))
        with pytest.raises(CheckpointError, match=f"config.json: {name}.*{wrong}"):
            read_model(tmp_path)


@pytest.mark.parametrize("field", OURS_ALONE)
def test_transformers_must_refuse_what_it_cannot_express(tmp_path, small, random_params, field):
    config = small(**OURS_ALONE[field])
    assert transformers_lacks(config) == [field]
    write_model(tmp_path, config, random_params(config))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bart_hk"
    about = json.loads((tmp_path / "bart_hk.json").read_text())
    assert about["transformers_lacks"] == [field]


def test_reading_in_another_dtype(tmp_path, small, random_params, random_head):
    config = small()
    params = random_params(config)
    write_model(tmp_path, config, params, {"mood": random_head()})
    found = read_model(tmp_path, "bfloat16")
    table = found.params["embed_tokens"]["embeddings"]
    np.testing.assert_array_equal(table, params["embed_tokens"]["embeddings"].astype(bfloat16))
    dtypes = {a.dtype for leaves in found.params.values() for a in leaves.values()}
    assert dtypes == {np.dtype(bfloat16)} == {found.heads["mood"].params["dense"]["w"].dtype}
    write_model(tmp_path, config, found.params)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert read_model(tmp_path, np.float32).params["embed_tokens"]["embeddings"].dtype == np.float32
    for dtype in ("float23", "int8"):
        with pytest.raises(
            ValueError, match=f"dtype='{dtype}' is none .* float32, float16, bfloat16"
        ):
            read_model(tmp_path, dtype)


# --- What transformers wrote ----------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path, golden):
    """A directory as transformers saved it, whose tensors the argument may change first."""

    def make(name="transformers_bart", change=lambda tensors: tensors, **content):
        files = golden("model/cases.json")["cases"][name]["files"]
        for file, saved in files.items():
            more = content if file == "config.json" else {}
            (tmp_path / file).write_text(json.dumps({**saved, **more}))
        arrays = golden(f"model/{name}.safetensors").items()
        tensors = change({key[8:]: a for key, a in arrays if key.startswith("weights/")})
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path

    return make


@pytest.mark.parametrize("name", ["bart", "pad_0", "mbart", "untied", "bias", "classifier"])
def test_what_transformers_wrote_is_written_alike(foreign, tmp_path, name):
    directory = foreign(f"transformers_{name}")
    theirs = load_file(directory / "model.safetensors")
    found = read_model(directory)
    head = "classification_head" if name == "classifier" else None
    write_model(tmp_path / "ours", *vars(found).values(), head=head)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    if name == "untied":  # stored in one copy by transformers, where its classes share it
        for side in ("encoder", "decoder"):
            key = f"model.{side}.embed_tokens.weight"
            theirs.setdefault(key, theirs["model.shared.weight"])
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].tobytes() == array.tobytes(), key
    content = json.loads((directory / "config.json").read_text())
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    shared = content.keys() & written.keys()
    assert {key: written[key] for key in shared} == {key: content[key] for key in shared}
    # transformers has its defaults for these, and generation_config.json says the last.
    beside = {"use_cache", "init_std", "dtype", "forced_eos_token_id", "id2label", "label2id"}
    assert content.keys() - shared <= beside


def test_other_generation_settings_are_kept(foreign, tmp_path):
    directory = foreign()
    path = directory / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_beams": 4}))
    found = read_model(directory)
    assert found.extras == {"generation_config": {"num_beams": 4}}
    write_model(tmp_path / "ours", *vars(found).values())
    assert json.loads((tmp_path / "ours" / path.name).read_text()) == {
        "num_beams": 4,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }


def test_the_prefix_may_be_absent(foreign, assert_equal):
    expected = read_model(foreign()).params

    def without_prefix(tensors):  # as a BartModel's
        return {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}

    found = read_model(foreign(change=without_prefix, architectures=["BartModel"]))
    assert_equal(found.params, expected)


@pytest.mark.parametrize("kept", ["encoder.embed_tokens", "decoder.embed_tokens", "lm_head"])
def test_a_tied_table_may_have_any_of_its_names(foreign, assert_equal, kept):
    expected = read_model(foreign()).params

    def renamed(tensors):
        table = tensors.pop("model.shared.weight")
        return {**tensors, f"{'' if kept == 'lm_head' else 'model.'}{kept}.weight": table}

    assert_equal(read_model(foreign(change=renamed)).params, expected)


def test_copies_of_a_tied_table_are_not_read(foreign, assert_equal):
    expected = read_model(foreign()).params

    def with_copies(tensors):
        table = tensors["model.shared.weight"]
        names = ("lm_head.weight", "model.encoder.embed_tokens.weight")
        return {**tensors, **dict.fromkeys(names, table), "model.encoder.version": np.ones(1)}

    assert_equal(read_model(foreign(change=with_copies)).params, expected)


def test_an_untied_trunk_without_an_output_layer(foreign):
    def trunk(tensors):
        return {k: v for k, v in tensors.items() if k.startswith("model.")}

    directory = foreign("transformers_untied", trunk, architectures=["BartModel"])
    config = read_model(directory).config
    assert not config.share_all_embeddings and config.share_decoder_input_output_embed
    foreign("transformers_untied", trunk)
    with pytest.raises(ValueError, match=r"lack the tensor lm_head\.weight"):
        read_model(directory)


def test_shards(foreign, assert_equal):
    directory = foreign()
    expected = read_model(directory).params
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, directory / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_equal(read_model(directory).params, expected)
    (directory / "two.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no two\.safetensors"):
        read_model(directory)


def test_layers_that_a_bart_has_not_are_reported(foreign):
    directory = foreign(change=lambda t: {**t, "qa_outputs.weight": np.zeros((2, 16), np.float32)})
    with pytest.warns(UserWarning, match=r"not used: qa_outputs\.weight"):
        read_model(directory)


@pytest.mark.parametrize(
    ("classes", "content", "labels", "regression"),
    [
        (3, {"id2label": {"2": "c", "0": "a", "1": "b"}}, ["a", "b", "c"], False),
        (3, {"id2label": {str(i): f"LABEL_{i}" for i in range(3)}}, None, False),
        (3, {"id2label": None}, None, False),
        (1, {"id2label": {"0": "LABEL_0"}}, None, True),
        (1, {"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}, None, True),
        (2, {"id2label": {"0": "x", "1": "y"}, "problem_type": "regression"}, ["x", "y"], True),
    ],
)
def test_labels_of_a_classifier(foreign, classes, content, labels, regression):
    def resized(tensors):
        for leaf in ("weight", "bias"):
            name = f"classification_head.out_proj.{leaf}"
            tensors[name] = np.resize(tensors[name], (classes, *tensors[name].shape[1:]))
        return tensors

    head = read_model(foreign("transformers_classifier", resized, **content)).heads
    assert list(head) == ["classification_head"]
    assert head["classification_head"].labels == labels
    assert head["classification_head"].regression is regression
    assert head["classification_head"].num_classes == classes


# facebook/bart-large-cnn's, but for its size.
CNN = {
    "model_type": "bart",
    "vocab_size": 60,
    "force_bos_token_to_be_generated": True,
    "forced_eos_token_id": 2,
    "classif_dropout": 0.0,
    "normalize_before": False,
}


@pytest.mark.parametrize(
    ("config", "generation", "start", "forced"),
    [
        ({"model_type": "bart"}, None, 2, (None, 2)),
        (CNN, None, 2, (0, 2)),
        ({**CNN, "forced_bos_token_id": 5}, None, 2, (5, 2)),
        ({**CNN, "decoder_start_token_id": 7}, {}, 7, (None, None)),
        (CNN, {"decoder_start_token_id": 8, "forced_bos_token_id": 9}, 8, (9, None)),
        ({"model_type": "bart", "decoder_start_token_id": None}, {}, 0, (None, None)),
        ({"model_type": "mbart", "eos_token_id": 6}, None, 0, (None, 6)),
        ({"model_type": "mbart", "decoder_start_token_id": None}, {}, 0, (None, None)),
        (CNN, {"forced_eos_token_id": [4, 2]}, 2, (None, 4)),
    ],
)
def test_start_mode(config, generation, start, forced):
    found = config_from_json(config, generation)
    assert found.decoder_start_token_id == start
    assert (found.forced_bos_token_id, found.forced_eos_token_id) == forced


def test_a_plbart_stays_one(tmp_path, small, random_params, random_head, assert_equal):
    """transformers' name for a BART of programming languages, whose defaults are its own."""
    config = config_from_json({"model_type": "plbart"})
    assert (config.vocab_size, config.encoder_embed_dim, config.encoder_layers) == (50005, 768, 6)
    assert (config.decoder_attention_heads, config.decoder_ffn_embed_dim) == (12, 3072)
    assert not config.no_scale_embedding and not config.encoder_normalize_before
    assert config.decoder_start_token_id == 0 and config.forced_bos_token_id is None

    config = small(no_scale_embedding=False, decoder_start_token_id=7, forced_bos_token_id=None)
    params, heads = random_params(config), {"mood": random_head()}
    for head, kind in ((None, "ConditionalGeneration"), ("mood", "SequenceClassification")):
        write_model(tmp_path, config, params, heads, {"model_type": "plbart"}, head=head)
        about = json.loads((tmp_path / "config.json").read_text())
        assert about["architectures"] == [f"PLBartFor{kind}"]
        assert about["model_type"] == "plbart"
        found = read_model(tmp_path)
        assert found.config == config and found.extras == {"model_type": "plbart"}
        assert_equal(found.params, params)
        assert_equal(found.heads["mood"].params, heads["mood"].params)
    # An mBART by structure is none.
    write_model(tmp_path, small(**PRE_NORM), random_params(small(**PRE_NORM)), extras=found.extras)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mbart"


def test_the_unknown_id_is_known_only_in_fairseqs_layout():
    assert config_from_json({"model_type": "bart"}).unk_token_id == 3
    assert config_from_json({"model_type": "bart", "pad_token_id": 0}).unk_token_id is None


@pytest.mark.parametrize("about", [{}, {"multi_label": True}], ids=str)
@pytest.mark.parametrize("head", [None, "classification_head"])
def test_a_head_of_the_name_that_transformers_heads_get(
    tmp_path, small, random_params, random_head, head, about
):
    """Such is the only head of a model that was read from transformers' classifier."""
    config = small()
    heads = {"classification_head": random_head(labels=["x", "y", "z"], **about)}
    write_model(tmp_path, config, random_params(config), heads, head=head)
    (found,) = read_model(tmp_path).heads.values()
    assert found.labels == ["x", "y", "z"]
    assert (found.multi_label, found.regression) == (bool(about), False)
    np.testing.assert_array_equal(
        found.params["out_proj"]["w"], heads["classification_head"].params["out_proj"]["w"]
    )
    if head:
        (tmp_path / "bart_hk.json").unlink()  # what transformers itself would have written
        (found,) = read_model(tmp_path).heads.values()
        assert found.multi_label == bool(about)


# --- What is wrong is named -----------------------------------------------------------------------


def drop(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def put(name, array):
    return lambda tensors: {**tensors, name: array}


@pytest.mark.parametrize(
    ("change", "content", "message"),
    [
        (lambda t: t, {"vocab_size": 50}, r"vocab_size=50, but shared\.weight .* has 60 rows"),
        (
            put("model.encoder.layers.1.fc1.weight", np.zeros((24, 15), np.float32)),
            {},
            r"model\.encoder\.layers\.1\.fc1\.weight has shape \(24, 15\); .* asks for \(24, 16\)",
        ),
        (
            put("model.encoder.layers.1.fc1.weight", np.zeros((24, 16), np.int32)),
            {},
            r"encoder\.layers\.1\.fc1\.weight has dtype int32; a model's tensors are floats",
        ),
        (
            lambda t: t,
            {"max_position_embeddings": 12},
            r"encoder\.embed_positions\.weight has shape \(16, 16\); .* asks for \(14, 16\)",
        ),
        (
            drop("model.decoder.layers.0.encoder_attn.k_proj.bias"),
            {},
            r"lack the tensor decoder\.layers\.0\.encoder_attn\.k_proj\.bias",
        ),
        (drop("model.shared.weight"), {}, r"lack the tensor shared\.weight"),
        (
            put("model.decoder.layer_norm.bias", np.zeros(16, np.float32)),
            {},
            r"holds decoder\.layer_norm\.bias, for which config\.json has no place",
        ),
        (lambda t: t, {"encoder_layers": 1}, r"holds encoder\.layers\.1\.\S+, for which config"),
        (
            lambda t: t,
            {"model_type": "t5"},
            "config.json: model_type 't5' is not one .*: bart, mbart",
        ),
        (lambda t: t, {"model_type": None}, "config.json: model_type None is not one"),
        (lambda t: t, {"d_model": "16"}, "config.json: d_model is '16', which is no int"),
        (lambda t: t, {"encoder_layers": True}, "encoder_layers is True, which is no int"),
        (lambda t: t, {"pad_token_id": None}, "pad_token_id is None, which is no int"),
        (lambda t: t, {"eos_token_id": 60}, "eos_token_id=60 is outside the vocabulary of 60"),
        (lambda t: t, {"encoder_attention_heads": 3}, "encoder_attention_heads=3"),
        (lambda t: t, {"activation_function": "sine"}, "activation_fn='sine' is not known"),
    ],
)
def test_misfits_are_named_in_one_line(foreign, change, content, message):
    directory = foreign(change=change, **content)
    with pytest.raises(ValueError, match=message) as caught:
        read_model(directory)
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)


def test_an_activation_of_other_constants_is_refused(tmp_path, small, random_params):
    config = small(activation_fn="xielu")
    write_model(tmp_path, config, random_params(config))
    read_model(tmp_path, "float16")
    name = "model.decoder.layers.0.activation_fn.beta"
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors[name].dtype == bfloat16 and tensors[name] == 0.5
    save_file({**tensors, name: np.asarray(0.7, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"activation_fn\.beta is 0\.69\S+; in every xIELU it is"):
        read_model(tmp_path)


def test_a_vocabulary_that_does_not_fit_an_untied_model(foreign):
    directory = foreign("transformers_untied", vocab_size=70)
    with pytest.raises(ValueError, match=r"vocab_size=70, but \S+ in model\.safetensors has 60"):
        read_model(directory)


def test_missing_and_damaged_files(foreign):
    directory = foreign()
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    for length in (0, 5, 200, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged or no") as caught:
            read_model(directory)
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        read_model(directory)
    (directory / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: is empty"):
        read_model(directory)
    (directory / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        read_model(directory)
    with pytest.raises(FileNotFoundError, match="no model directory .*nowhere"):
        read_model(directory / "nowhere")


def test_extras_of_another_version(tmp_path, small, random_params):
    config = small()
    write_model(tmp_path, config, random_params(config))
    path = tmp_path / "bart_hk.json"
    extras = json.loads(path.read_text())
    path.write_text(json.dumps({**extras, "format": 2}))
    with pytest.raises(ValueError, match=r"bart_hk\.json has format 2, this version reads 1"):
        read_model(tmp_path)
    path.write_text(json.dumps({**extras, "config": {"drop_out": 0.3}}))
    with pytest.raises(ValueError, match="no field 'drop_out'; did you mean 'dropout'"):
        read_model(tmp_path)


def test_what_cannot_be_written_is_refused(tmp_path, small, random_params, random_head):
    config = small()
    params = random_params(config)
    heads = {"wide": random_head(inner=8)}
    with pytest.raises(ValueError, match="no head 'mood'; there are: wide"):
        write_model(tmp_path / "m", config, params, heads, head="mood")
    with pytest.raises(ValueError, match="this one has .* inner_dim=8, not 16: save without head="):
        write_model(tmp_path / "m", config, params, heads, head="wide")
    with pytest.raises(ValueError, match="this one has pooler_activation_fn=relu"):
        relu = config.replace(pooler_activation_fn="relu")
        write_model(tmp_path / "m", relu, params, {"mood": random_head()}, head="mood")
    with pytest.raises(ValueError, match=r"the parameters lack final_logits_bias/b"):
        write_model(tmp_path / "m", config.replace(final_logits_bias=True), params)
    assert not (tmp_path / "m").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot save in .*file/m: Not a directory"):
        write_model(tmp_path / "file" / "m", config, params)


# --- Saving over a model --------------------------------------------------------------------------


def test_a_save_replaces_heads_and_keeps_other_files(tmp_path, small, random_params, random_head):
    config = small()
    write_model(tmp_path, config, random_params(config), {"mood": random_head()})
    (tmp_path / "log.jsonl").write_text("{}")
    also = []
    write_model(tmp_path, config, random_params(config), also=also.append)
    assert read_model(tmp_path).heads == {}
    assert {p.name for p in tmp_path.iterdir()} == {
        "bart_hk.json",
        "config.json",
        "generation_config.json",
        "log.jsonl",
        "model.safetensors",
    }
    assert len(also) == 1 and also[0].parent == tmp_path  # a folder of its own, moved since


FULL_DISK = """
import json, resource, sys
import numpy as np
from bart_hk.checkpoint.huggingface import read_model, write_model

directory, limit = sys.argv[1], int(sys.argv[2])
model = read_model(directory)
for leaves in model.params.values():
    for name in leaves:
        leaves[name] = leaves[name] + np.float32(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_model(directory, model.config, model.params, model.heads, head="mood")
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 300, 5000, 30000])
def test_a_full_disk_leaves_the_previous_model(
    tmp_path, small, random_params, random_head, assert_equal, limit
):
    """Every file of the save is cut at `limit` bytes: nothing, JSON, or weights do not fit."""
    config = small()
    params = random_params(config)
    write_model(tmp_path, config, params, {"mood": random_head()})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 0, done.stderr
    message = f"cannot save in {tmp_path}: File too large; what was saved there before is unchanged"
    assert done.stdout.strip() == message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    found = read_model(tmp_path)
    assert found.config == config
    assert_equal(found.params, params)
