"""fairseq's checkpoints in every dialect, from states that the real one computed with."""

import logging
import os
import re
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from bart_hk.checkpoint.fairseq_file import (
    TASK_HEAD,
    checkpoint_paths,
    fit_dictionary,
    name_labels,
    read_fairseq,
    write_fairseq,
)
from bart_hk.config import BARTConfig
from bart_hk.errors import CheckpointError
from bart_hk.text import TextEncoder, train_bpe
from bart_hk.torch_format import Namespace, read_torch, write_torch

PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}


@pytest.fixture
def real(golden):
    """A config, the arguments that make it in fairseq, and the state of a real BARTModel."""

    def read(name="fairseq_post_norm"):
        fields = golden("model/cases.json")["cases"][name]["config"]
        arrays = golden(f"model/{name}.safetensors").items()
        state = {key[8:]: array for key, array in arrays if key.startswith("weights/")}
        table = state.setdefault(
            "decoder.embed_tokens.weight", state["encoder.embed_tokens.weight"]
        )
        state.setdefault("decoder.output_projection.weight", table)
        args = {"arch": "bart_large", "task": "denoising", **fields}
        return BARTConfig(**fields), Namespace(args), state

    return read


def write(path, state, args=None, **more):
    """A checkpoint as fairseq's trainer wrote them until 2020."""
    write_torch(path, {"args": args, "model": OrderedDict(state), **more})
    return path


def fused(state):
    """The state as fairseq of 2019 had it: q, k and v in one tensor, layer norms by number."""
    numbers = {
        "encoder": {"self_attn_layer_norm": 0, "final_layer_norm": 1},
        "decoder": {"self_attn_layer_norm": 0, "encoder_attn_layer_norm": 1, "final_layer_norm": 2},
    }
    old = {}
    for name, tensor in state.items():
        side = name.partition(".")[0]
        if match := re.fullmatch(r"(.+\.layers\.\d+)\.(\w+_layer_norm)\.(\w+)", name):
            old[f"{match[1]}.layer_norms.{numbers[side][match[2]]}.{match[3]}"] = tensor
        elif match := re.fullmatch(r"(.+)\.q_proj\.(\w+)", name):
            parts = [state[f"{match[1]}.{p}_proj.{match[2]}"] for p in "qkv"]
            old[f"{match[1]}.in_proj_{match[2]}"] = np.concatenate(parts)
        elif not re.search(r"\.[kv]_proj\.", name):
            old[name] = tensor
    assert len(old) < len(state)
    return old


def with_fast_path(state):
    """The state as fairseq of 2022 had it: an encoder layer's weights once more, here stale."""
    more = dict(state)
    for name in state:
        if match := re.fullmatch(r"(encoder\.layers\.\d+)\.(fc[12])\.(\w+)", name):
            more[f"{match[1]}.{match[2]}_{match[3]}"] = np.zeros_like(state[name])
        if match := re.fullmatch(r"(encoder\.layers\.\d+)\.self_attn\.out_proj\.(\w+)", name):
            more[f"{match[1]}.out_proj_{match[2]}"] = np.zeros_like(state[name])
            rows = 3 * len(state[name])
            more[f"{match[1]}.in_proj_{match[2]}"] = np.zeros((rows, *state[name].shape[1:]))
    layers = sum(name.endswith(".fc1.bias") for name in state if name.startswith("encoder"))
    assert len(more) == len(state) + 8 * layers
    return more


def without(state, *patterns):
    return {n: t for n, t in state.items() if not any(re.fullmatch(p, n) for p in patterns)}


DIALECTS = {
    "today": lambda state: state,
    "2019": fused,
    "2022": with_fast_path,
    "no version": lambda state: without(state, r".*\.version"),
    "old version": lambda state: {
        n: np.ones(1, np.float32) if n.endswith("version") else t for n, t in state.items()
    },
    "one table": lambda state: without(
        state, r"decoder\.embed_tokens\.weight", r"decoder\.output_projection\.weight"
    ),
    "sinusoidal leftovers": lambda state: {
        **state,
        "encoder.embed_positions._float_tensor": np.ones(1, np.float32),
    },
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["fairseq_post_norm", "fairseq_pre_norm"])
def test_every_dialect_is_the_same_model(tmp_path, real, assert_equal, name, dialect):
    """Pre-norm too: fairseq would lose the last layer norms without `version`, we do not."""
    config, args, state = real(name)
    expected = read_fairseq(write(tmp_path / "today.pt", state, args))
    model = read_fairseq(write(tmp_path / "model.pt", DIALECTS[dialect](state), args))
    assert model.config == expected.config == config
    assert_equal(model.params, expected.params)
    assert_equal(model.heads["mood"].params, expected.heads["mood"].params)
    table = model.params["embed_tokens"]["embeddings"]
    np.testing.assert_array_equal(table, state["encoder.embed_tokens.weight"])
    np.testing.assert_array_equal(
        model.params["decoder/layers_0/encoder_attn/v_proj"]["w"],
        state["decoder.layers.0.encoder_attn.v_proj.weight"].T,
    )
    assert model.extras == {"fairseq": {"arch": "bart_large", "task": "denoising"}}


def test_the_copy_counts_that_fairseq_is_left_with(tmp_path, real):
    """It loads the three of a tied table one after the other."""
    config, args, state = real()
    output = state["decoder.output_projection.weight"] + 1
    state["decoder.output_projection.weight"] = output
    model = read_fairseq(write(tmp_path / "model.pt", state, args))
    np.testing.assert_array_equal(model.params["embed_tokens"]["embeddings"], output)


@pytest.mark.parametrize("name", ["fairseq_untied", "fairseq_tied_output"])
def test_tables_of_their_own(tmp_path, real, assert_equal, name):
    config, args, state = real(name)
    model = read_fairseq(write(tmp_path / "model.pt", state, args))
    assert model.config == config
    for path, tensor in (("encoder/embed_tokens", "encoder"), ("decoder/embed_tokens", "decoder")):
        expected = state[f"{tensor}.embed_tokens.weight"]
        np.testing.assert_array_equal(model.params[path]["embeddings"], expected)
    # An older name of an untied output.
    if name == "fairseq_untied":
        state["decoder.embed_out"] = state.pop("decoder.output_projection.weight")
        again = read_fairseq(write(tmp_path / "old.pt", state, args))
        assert_equal(again.params, model.params)


def cfg_of(args, **nodes):
    """A checkpoint's `cfg` of 2021: nodes with their values, the model's again a Namespace."""
    model = Namespace({**args, "_name": args["arch"]})
    return {"model": model, "task": {"_name": "denoising", "data": "x"}, "common": {}, **nodes}


def test_arguments_in_either_form(tmp_path, real):
    config, args, state = real("fairseq_pre_norm")
    args["no_scale_embedding"] = False
    old = read_fairseq(write(tmp_path / "args.pt", state, args))
    new = read_fairseq(write(tmp_path / "cfg.pt", state, None, cfg=cfg_of(args)))
    assert old.config == new.config == config
    assert old.extras == new.extras
    # A dictionary for the model's node, and only what differs from the architecture in it.
    sizes = ("embed_dim", "ffn_embed_dim", "layers")
    few = {n: v for n, v in args.items() if n != "arch" and not n.endswith((*sizes, "_positions"))}
    few = {n: v for n, v in few.items() if n != "vocab_size"}
    node = {"_name": "bart_base", **few}
    again = read_fairseq(write(tmp_path / "node.pt", state, None, cfg={"model": node}))
    assert again.config == config
    assert again.extras == {"fairseq": {"arch": "bart_base", "task": "denoising"}}
    # Where both are there, fairseq goes by `args`.
    both = write(tmp_path / "both.pt", state, args, cfg={"model": {"_name": "transformer_lm"}})
    assert read_fairseq(both).config == config


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_dtypes_are_kept_and_nothing_is_copied(tmp_path, real, dtype):
    _, args, state = real()
    state = {name: tensor.astype(dtype) for name, tensor in fused(state).items()}
    table = state["encoder.embed_tokens.weight"]
    state |= dict.fromkeys(
        ("decoder.embed_tokens.weight", "decoder.output_projection.weight"), table
    )
    model = read_fairseq(write(tmp_path / "model.pt", state, args))
    for path, leaves in model.params.items():
        for name, array in leaves.items():
            assert array.dtype == dtype, path
            assert not array.flags.owndata and not array.flags.writeable, (path, name)
    stored = read_torch(tmp_path / "model.pt")["model"]
    ours = model.params["encoder/layers_1/self_attn/k_proj"]["w"]
    fused_tensor = stored["encoder.layers.1.self_attn.in_proj_weight"]
    assert ours.tobytes() == np.ascontiguousarray(fused_tensor[16:32].T).tobytes()


def test_the_optimizer_and_a_second_model_are_not_read(tmp_path, real):
    """Even where their numbers are damaged: their checksums are not even looked at."""
    _, args, state = real()
    marker = np.full(1000, 1234.5, np.float32)
    path = write(
        tmp_path / "model.pt",
        state,
        args,
        last_optimizer_state={"state": {0: {"exp_avg": marker}}},
        extra_state={"ema": {"encoder.embed_tokens.weight": marker + 1}},
    )
    content = path.read_bytes()
    for numbers in (marker, marker + 1):
        assert content.count(numbers.tobytes()) == 1
        content = content.replace(numbers.tobytes(), (numbers + 2).tobytes())
    path.write_bytes(content)
    model = read_fairseq(path)
    assert model.config.vocab_size == len(state["encoder.embed_tokens.weight"])
    with pytest.raises(CheckpointError):
        read_torch(path)


def test_a_bare_state_dict(tmp_path, real, assert_equal, caplog):
    config, args, state = real()
    expected = read_fairseq(write(tmp_path / "args.pt", state, args))
    write_torch(tmp_path / "bare.pt", state)
    with pytest.raises(CheckpointError, match=r"width 16 is no multiple of 64.*_heads=NUMBER"):
        read_fairseq(tmp_path / "bare.pt")
    heads = {
        f"{side}_attention_heads": getattr(config, f"{side}_attention_heads")
        for side in ("encoder", "decoder")
    }
    with caplog.at_level(logging.WARNING):
        model = read_fairseq(tmp_path / "bare.pt", overrides=heads)
    assert "tensors without arguments" in caplog.text
    assert model.config == config and model.extras == {}
    assert_equal(model.params, expected.params)


def test_fairseqs_heads_have_no_width_of_their_own(tmp_path, random_params, small):
    config = small(attention_head_dim=7)
    with pytest.raises(ValueError, match="attention_head_dim=7, but fairseq's heads share the"):
        write_fairseq(tmp_path, config, random_params(config))


@pytest.mark.parametrize("flavour", ["encoder_only", "decoder_only"])
def test_fairseqs_barts_have_both_stacks(tmp_path, random_params, small, flavour):
    config = small(flavour=flavour)
    with pytest.raises(ValueError, match=f"flavour={flavour}, but a BART of fairseq's has both"):
        write_fairseq(tmp_path, config, random_params(config))


def test_a_bare_state_dict_says_what_it_can(tmp_path, random_params, small):
    """Heads of 64, mBART's scale where it is pre-norm, which tables are one."""
    untied = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
    for changes in (
        {},
        {**PRE_NORM, "no_scale_embedding": False},
        untied,
        {"share_all_embeddings": False},
        {"layernorm_embedding": False},
    ):
        config = small(encoder_embed_dim=128, encoder_attention_heads=2, **changes)
        write_fairseq(tmp_path, config, random_params(config))
        write_torch(tmp_path / "bare.pt", dict(read_torch(tmp_path / "model.pt")["model"]))
        assert read_fairseq(tmp_path / "bare.pt").config == config, changes


def test_overrides(tmp_path, real):
    config, args, state = real()
    path = write(tmp_path / "model.pt", state, args)
    model = read_fairseq(path, overrides={"dropout": 0.3, "forced_bos_token_id": None})
    assert model.config == config.replace(dropout=0.3, forced_bos_token_id=None)
    with pytest.raises(TypeError, match="no field 'dropuot'; did you mean 'dropout'"):
        read_fairseq(path, overrides={"dropuot": 0.3})
    with pytest.raises(ValueError, match="max_source_positions=30 was asked for, but .* have 14"):
        read_fairseq(path, overrides={"max_source_positions": 30})
    del args["arch"]
    args["arch"] = "my_bart"
    mine = write(tmp_path / "mine.pt", state, args)
    with pytest.raises(CheckpointError, match="'my_bart' is not a BART.*arch='bart_large'"):
        read_fairseq(mine)
    assert read_fairseq(mine, overrides={"arch": "bart_base"}).config == config


def test_older_and_published_names_of_arguments(tmp_path, real):
    config, args, state = real()
    args |= {"arch": "denoising_large", "relu_dropout": 0.2, "activation_dropout": 0.0}
    args |= {"no_scale_embedding": None, "max_positions": 512, "adaptive_softmax_cutoff": None}
    model = read_fairseq(write(tmp_path / "model.pt", state, args))
    # The one of the published mBART-50s is mbart_large, which scales its embeddings.
    assert model.config == config.replace(activation_dropout=0.2, no_scale_embedding=False)


def test_layers_to_keep(tmp_path, real):
    config, args, state = real()
    args["encoder_layers_to_keep"] = "1"
    model = read_fairseq(write(tmp_path / "model.pt", state, args))
    assert model.config == config.replace(encoder_layers=1)
    kept = model.params["encoder/layers_0/fc1"]["w"]
    np.testing.assert_array_equal(kept, state["encoder.layers.1.fc1.weight"].T)
    args["encoder_layers_to_keep"] = "all"
    with pytest.raises(CheckpointError, match="encoder_layers_to_keep='all' is no list of layers"):
        read_fairseq(write(tmp_path / "bad.pt", state, args))


# --- Heads, labels, languages, dictionaries -------------------------------------------------------


def head_tensors(name, inner, classes, width=16):
    rng = np.random.default_rng(inner)
    shapes = {"dense.weight": (inner, width), "dense.bias": (inner,)}
    shapes |= {"out_proj.weight": (classes, inner), "out_proj.bias": (classes,)}
    return {
        f"classification_heads.{name}.{leaf}": rng.standard_normal(shape, np.float32)
        for leaf, shape in shapes.items()
    }


def test_heads_of_any_sizes(tmp_path, real):
    _, args, state = real()
    state |= head_tensors("wide", 40, 2) | head_tensors(TASK_HEAD, 16, 1)
    args["regression_target"] = True
    model = read_fairseq(write(tmp_path / "model.pt", state, args))
    assert {(n, h.inner_dim, h.num_classes) for n, h in model.heads.items()} == {
        ("mood", 8, 3),
        ("wide", 40, 2),
        (TASK_HEAD, 16, 1),
    }
    assert [name for name, head in model.heads.items() if head.regression] == [TASK_HEAD]
    state["classification_heads.wide.dense.bias"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=r"dense.bias of the head 'wide' .* \(3,\), not \(40"):
        read_fairseq(write(tmp_path / "bad.pt", state, args))
    del state["classification_heads.wide.dense.bias"]
    with pytest.raises(CheckpointError, match=r"head 'wide' lacks the tensor dense.bias"):
        read_fairseq(write(tmp_path / "bad.pt", state, args))


def test_a_head_under_spectral_norm(tmp_path, real):
    _, args, state = real()
    state |= head_tensors("norm", 12, 4)
    weight = state.pop("classification_heads.norm.out_proj.weight")
    u, _, vt = np.linalg.svd(weight)
    prefix = "classification_heads.norm.out_proj.weight"
    state |= {f"{prefix}_orig": weight, f"{prefix}_u": u[:, 0], f"{prefix}_v": vt[0]}
    model = read_fairseq(write(tmp_path / "model.pt", state, args))
    ours = model.heads["norm"].params["out_proj"]["w"]
    np.testing.assert_allclose(np.linalg.norm(ours, 2), 1.0, rtol=1e-5)
    np.testing.assert_allclose(ours.T * np.linalg.norm(weight, 2), weight, rtol=1e-4, atol=1e-6)
    del state[f"{prefix}_u"]
    with pytest.raises(CheckpointError, match="stands without .*weight_u"):
        read_fairseq(write(tmp_path / "bad.pt", state, args))


def test_labels_name_the_head_of_the_task(tmp_path, real, caplog):
    _, args, state = real()
    path = write(tmp_path / "one.pt", state, args)
    assert read_fairseq(path, labels=["a", "b", "c"]).heads["mood"].labels == ["a", "b", "c"]
    assert read_fairseq(path, labels=["a", "b"]).heads["mood"].labels is None
    assert "names 2 classes, the head 'mood' has 3" in caplog.text
    state |= head_tensors(TASK_HEAD, 16, 3)
    model = read_fairseq(write(tmp_path / "two.pt", state, args), labels=["a", "b", "c"])
    assert model.heads[TASK_HEAD].labels == ["a", "b", "c"] and model.heads["mood"].labels is None
    name_labels(model, ["x", "y", "z"])
    assert model.heads[TASK_HEAD].labels == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("settings", "langs"),
    [
        ({"task": "multilingual_denoising", "langs": "en_XX,ro_RO", "add_lang_token": True}, 2),
        ({"task": "multilingual_denoising", "langs": "en_XX,ro_RO", "add_lang_token": False}, 0),
        ({"task": "translation_from_pretrained_bart", "langs": "en_XX,ro_RO"}, 2),
        ({"task": "translation_multi_simple_epoch", "langs": ["en_XX", "ro_RO"]}, 2),
        ({"task": "translation_multi_simple_epoch", "lang_dict": "/far/away/langs.txt"}, 2),
        ({"task": "denoising", "langs": None}, 0),
    ],
)
def test_languages(tmp_path, real, settings, langs):
    _, args, state = real()
    (tmp_path / "ML50_langs.txt").write_text("en_XX\nro_RO\n")
    model = read_fairseq(write(tmp_path / "model.pt", state, Namespace({**args, **settings})))
    assert model.extras.get("langs", []) == ["en_XX", "ro_RO"][:langs]
    assert model.extras["fairseq"]["task"] == settings["task"]


def test_a_dictionary_without_mask_drops_its_row(tmp_path, real):
    config, args, state = real()
    path = write(tmp_path / "model.pt", state, args)
    model = read_fairseq(path, dictionary_size=59)
    assert model.config == config.replace(vocab_size=59)
    table = model.params["embed_tokens"]["embeddings"]
    np.testing.assert_array_equal(table, state["encoder.embed_tokens.weight"][:59])
    assert read_fairseq(path, dictionary_size=60).config == config
    for size in (58, 61):
        with pytest.raises(CheckpointError, match=f"{size} symbols, .* embeddings for 60: "):
            read_fairseq(path, dictionary_size=size)


@pytest.mark.parametrize("name", ["fairseq_post_norm", "fairseq_untied", "fairseq_tied_output"])
def test_new_languages_extend_every_table_alike(tmp_path, real, name):
    """fairseq forgets the output projection, and then cannot load."""
    config, args, state = real(name)
    args["task"] = "multilingual_denoising"
    path = write(tmp_path / "model.pt", state, args)
    old, model = read_fairseq(path), read_fairseq(path, dictionary_size=63)
    assert model.config == config.replace(vocab_size=63)
    new = []
    for module, leaves in model.params.items():
        leaf = "w" if module == "output_projection" else "embeddings"
        if "embed_tokens" not in module and module != "output_projection":
            assert leaves is old.params[module] or leaves.keys() == old.params[module].keys()
            continue
        table, before = leaves[leaf], old.params[module][leaf]
        if leaf == "w":
            table, before = table.T, before.T
        np.testing.assert_array_equal(table[:59], before[:59])
        np.testing.assert_array_equal(table[62], before[59])  # <mask> stays the last
        new.append(table[59:62])
        path = (module, leaf)
    for rows in new[1:]:
        np.testing.assert_array_equal(rows, new[0])
    assert len(np.unique(new[0])) == 3 * 16
    module, leaf = path
    for seed in (1, 2):
        again = fit_dictionary(old, 63, seed=seed).params[module][leaf]
        assert np.array_equal(again, model.params[module][leaf]) == (seed == 1)


# --- What cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "transformer_wmt_en_de"}, "'transformer_wmt_en_de' is not a BART"),
        ({"arch": "roberta_large"}, "'roberta_large' is not a BART"),
        ({"encoder_learned_pos": False}, "holds encoder.embed_positions.weight, for which"),
        ({"encoder_learned_pos": 0}, "encoder_learned_pos is 0, which is no bool"),
        ({"no_cross_attention": True}, "no_cross_attention=True is an option that no BART"),
        ({"adaptive_softmax_cutoff": "100,200"}, "adaptive_softmax_cutoff='100,200'"),
        ({"no_decoder_final_norm": True}, "no_decoder_final_norm=True"),
        ({"decoder_embed_dim": 32}, "decoder_embed_dim=32 differs from encoder_embed_dim=16"),
        ({"encoder_layers": 12}, "encoder_layers=12 is what the arguments say, .* weights have 2"),
        ({"encoder_ffn_embed_dim": 7}, "encoder_ffn_embed_dim=7 is what .* weights have 24"),
        ({"encoder_attention_heads": 3}, "must be divisible by encoder_attention_heads=3"),
        ({"encoder_attention_heads": "4"}, "encoder_attention_heads is '4', which is no int"),
        ({"encoder_normalize_before": 1}, "encoder_normalize_before is 1, which is no bool"),
        ({"encoder_normalize_before": True}, "lacks the tensor encoder.layer_norm.weight"),
        ({"activation_fn": "sin"}, "activation_fn='sin' is not known"),
        ({"dropout": "0.1"}, "dropout is '0.1', which is no float"),
    ],
)
def test_arguments_that_make_no_bart(tmp_path, real, arguments, message):
    _, args, state = real()
    path = write(tmp_path / "model.pt", state, Namespace({**args, **arguments}))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_fairseq(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")


def test_files_that_hold_no_bart(tmp_path, real):
    _, args, state = real()
    shape = (2, 3)
    contents = {
        "a list": ([1, 2], "holds a list, not a fairseq checkpoint"),
        "nothing": ({}, "holds a dict, not a fairseq checkpoint"),
        "lm": (
            {"args": args, "model": {"decoder.embed_tokens.weight": np.zeros(shape)}},
            "no fairseq BART: there is no encoder.embed_tokens, but decoder.embed_tokens",
        ),
        "hf": ({"model.shared.weight": np.zeros(shape)}, "name it pytorch_model.bin"),
        "flat": ({"model": {"encoder.embed_tokens.weight": np.zeros(3)}}, "not a BART's"),
        "encoder": (
            {"model": without(state, "decoder.*")},
            "no tensor decoder.layers.0.fc1.weight",
        ),
        "more": (
            {"args": args, "model": {**state, "decoder.extra": np.zeros(3)}},
            "holds decoder.extra, for which this config has no place",
        ),
        "thirds": (
            {
                "args": args,
                "model": {**state, "encoder.layers.0.self_attn.in_proj_bias": np.zeros(4)},
            },
            r"in_proj_bias of shape \(4,\) does not hold q, k and v",
        ),
    }
    for name, (content, message) in contents.items():
        write_torch(tmp_path / name, content)
        with pytest.raises(CheckpointError, match=message) as caught:
            read_fairseq(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read_fairseq(tmp_path / "nowhere.pt")


def test_a_missing_tensor_and_a_wrong_shape_are_named(tmp_path, real):
    _, args, state = real()
    name = "decoder.layers.0.encoder_attn.k_proj.bias"
    with pytest.raises(CheckpointError, match=f"lacks the tensor {re.escape(name)}"):
        read_fairseq(write(tmp_path / "less.pt", without(state, re.escape(name)), args))
    state[name] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} has shape \(3,\)"):
        read_fairseq(write(tmp_path / "wrong.pt", state, args))


def test_several_checkpoints(tmp_path):
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    paths = checkpoint_paths(tmp_path, os.pathsep.join(["b.pt", "a.pt"]))
    assert paths == [tmp_path / "b.pt", tmp_path / "a.pt"]
    with pytest.raises(FileNotFoundError, match=r"no model.pt \(checkpoints there: a.pt, b.pt\)"):
        checkpoint_paths(tmp_path)


# --- Writing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():
    return train_bpe(["the cat sat on the mat, the hat"] * 3, 280)


def same_text(one: TextEncoder, other: TextEncoder) -> bool:
    texts = ["the cat sat", "Ünï 😀", ""]
    return (
        one.dictionary == other.dictionary
        and one.dictionary.count == other.dictionary.count
        and (one.mask, one.tokenizer_class) == (other.mask, other.tokenizer_class)
        and one.encode_batch(texts) == other.encode_batch(texts)
    )


@pytest.mark.parametrize("name", ["fairseq_post_norm", "fairseq_pre_norm", "fairseq_untied"])
def test_a_state_comes_back_bit_for_bit(tmp_path, real, name):
    _, args, state = real(name)
    model = read_fairseq(write(tmp_path / "model.pt", fused(state), args))
    write_fairseq(tmp_path / "out", model.config, model.params, model.heads)
    back = read_torch(tmp_path / "out" / "model.pt")["model"]
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].dtype == tensor.dtype and back[key].shape == tensor.shape, key
        assert back[key].tobytes() == tensor.tobytes(), key
    again = read_fairseq(tmp_path / "out" / "model.pt")
    assert again.config == model.config


@pytest.mark.parametrize(
    ("dtype", "activation"), [(np.float16, "gelu_new"), (ml_dtypes.bfloat16, "relu2")]
)
def test_everything_about_a_model_comes_back(
    tmp_path, small, text, random_params, random_head, assert_equal, dtype, activation
):
    config = small(
        vocab_size=len(text.dictionary),
        max_target_positions=30,
        decoder_start_token_id=0,
        forced_bos_token_id=None,
        activation_fn=activation,  # fairseq calls them gelu_accurate and relu_squared
        unk_token_id=None,
        pooler_dropout=0.2,
    )
    params = random_params(config, dtype)
    heads = {
        "mood": random_head(labels=["bad", "so so", "good"]),
        "other": random_head(16, 24, 2, labels=["no", "yes"]),
        "grade": random_head(16, 16, 1, regression=True),
    }
    extras = {"generation": {"beam": 4, "lenpen": 2.0}, "note": None, "list": [1, [2]]}
    write_fairseq(tmp_path, config, params, heads, text, extras=extras)
    model = read_fairseq(tmp_path / "model.pt")
    assert model.config == config
    assert_equal(model.params, params)
    assert model.heads.keys() == heads.keys()
    for name, head in heads.items():
        assert_equal(model.heads[name].params, head.params)
        assert model.heads[name].labels == head.labels
        assert model.heads[name].regression == head.regression
    assert {k: v for k, v in model.extras.items() if k != "fairseq"} == extras
    assert same_text(TextEncoder.load(tmp_path, languages=()), text)
    assert (tmp_path / "label" / "dict.txt").read_text() == "bad 1\nso so 1\ngood 1\n"


def test_what_was_there_before_is_replaced_whole(tmp_path, small, text, random_params, monkeypatch):
    config = small(vocab_size=len(text.dictionary))
    write_fairseq(tmp_path, config, random_params(config), {}, text)
    (tmp_path / "notes.txt").write_text("mine")
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()}

    def fails(path, content):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bart_hk.checkpoint.fairseq_file.write_torch", fails)
    with pytest.raises(OSError, match="No space left on device; what was saved there before is"):
        write_fairseq(tmp_path, config, random_params(config, seed=1), {}, text)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    monkeypatch.undo()
    fewer = small(vocab_size=len(text.dictionary) - 1)
    write_fairseq(tmp_path, fewer, random_params(fewer), {}, text.fit(fewer.vocab_size))
    names = {f.name for f in tmp_path.iterdir()}
    assert "dict.txt" not in names and {"dict.source.txt", "dict.target.txt", "notes.txt"} <= names
    loaded = TextEncoder.load(tmp_path, languages=())
    assert same_text(loaded, text.fit(fewer.vocab_size))


def test_what_fairseq_cannot_express_is_refused(tmp_path, small, text, random_params):
    refused = [
        (small(final_logits_bias=True), "no bias on the logits"),
        (small(activation_fn="silu"), "activation_fn=silu is none of fairseq's"),
        (small(activation_fn="prelu"), "activation_fn=prelu is none of fairseq's"),
        (small(pad_token_id=0, bos_token_id=1), "dictionaries begin with <s> <pad> </s> <unk>"),
    ]
    for config, message in refused:
        with pytest.raises(ValueError, match=message):
            write_fairseq(tmp_path / "out", config, random_params(config))
    config = small()
    with pytest.raises(ValueError, match="275 symbols, but the model has embeddings for 60"):
        write_fairseq(tmp_path / "out", config, random_params(config), {}, text)
    with pytest.raises(ValueError, match="the parameters lack"):
        write_fairseq(tmp_path / "out", config.replace(encoder_layers=3), random_params(config))
    assert not list((tmp_path / "out").glob("*"))
