"""The hub's methods but for generation; checkpoints are compared with fairseq elsewhere."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bart_hk
from bart_hk.data.batching import buckets_up_to
from bart_hk.errors import CheckpointError, CutTextWarning
from bart_hk.hub import BARTHubInterface, collate_tokens
from bart_hk.hub.features import BUCKETS
from bart_hk.text import TextEncoder

# --- Text -----------------------------------------------------------------------------------------


def test_encode_gives_fairseqs_ids(shared):
    assert shared.encode("Hello world!").tolist() == [0, 31414, 232, 328, 2]
    assert shared.encode("Hello world").tolist() == [0, 31414, 232, 2]
    assert shared.encode(" world").tolist() == [0, 232, 2]
    assert shared.encode("world").tolist() == [0, 8331, 2]
    assert shared.encode("").tolist() == [0, 2]
    pair = shared.encode("Hello world", "world")
    assert pair.tolist() == [0, 31414, 232, 2, 8331, 2]
    apart = shared.encode("Hello world", "world", no_separator=False)
    assert apart.tolist() == [0, 31414, 232, 2, 2, 8331, 2]
    assert pair.dtype == np.int32


def test_special_symbols_in_a_text_are_ordinary_characters(shared):
    ids = shared.encode("<mask> </s> <s>").tolist()
    assert not {0, 1, 2, 50264} & set(ids[1:-1])
    assert shared.decode(ids) == "<mask> </s> <s>"


def test_encode_takes_lists_of_texts_and_pairs(shared):
    single, pair = shared.encode(["Hello world", ("Hello world", "world")])
    np.testing.assert_array_equal(single, shared.encode("Hello world"))
    np.testing.assert_array_equal(pair, shared.encode("Hello world", "world"))
    assert shared.encode([]) == []


def test_a_long_first_sentence_is_cut_as_in_fairseq(bart):
    shared, long = bart, " the" * 100
    said = "text 1 of 100 tokens was cut to the 62 that fit .*, and 1 more; truncate=True"
    with pytest.warns(CutTextWarning, match=said) as warned:
        assert len(shared.encode(["the", long, (long, "a"), "a"])[1]) == 64
    assert len(warned) == 1
    with pytest.warns(CutTextWarning, match="a text of over 62 tokens was cut to the 62 that fit"):
        assert shared.encode(long)[-1] == 2
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        for size in (70, 80, 90):
            shared.encode(" the" * size)
    assert len(warned) == 1
    # A model that was fine-tuned on shorter rows reads no longer ones, where they are cut.
    shorter = BARTHubInterface(bart.config, bart.params, bart.text, extras={"max_positions": 20})
    assert shorter.max_positions == (20, 64)
    assert len(shorter.encode((long, long), truncate=True)) == 20
    with pytest.warns(CutTextWarning, match="over 18 tokens was cut to the 18 that fit"):
        assert len(shorter.encode(long)) == 20
    assert shorter.extract_features(np.full(64, 5)).shape[1] == 64
    # What it writes may be longer all the same.
    (whole,) = shared.score(["a film"], [long[: 4 * 50]])
    (scored,) = shorter.score(["a film"], [long[: 4 * 50]])
    np.testing.assert_array_equal(scored["tokens"], whole["tokens"])
    assert len(scored["tokens"]) == 52
    with pytest.raises(ValueError, match=r"\(=65\) since max_positions=\(64, 64\)"):
        shorter.score([np.full(65, 5)])
    # fairseq leaves the second sentence whole; the row then does not fit.
    with pytest.warns(CutTextWarning):
        row = shared.encode(long, long)
    assert len(row) == 1 + 62 + 1 + 100 + 1
    with pytest.raises(
        ValueError, match=r"tokens exceeds maximum length: 165 > 64 .*truncate=True"
    ):
        shared.extract_features(row)


@pytest.mark.parametrize("no_separator", [True, False])
def test_truncate_fits_a_pair_and_keeps_every_eos(shared, no_separator):
    row = shared.encode(
        " the" * 100, " cat" * 20, truncate=True, no_separator=no_separator
    ).tolist()
    assert len(row) == 64 and row[0] == 0 and row[-1] == 2
    assert row.count(2) == (2 if no_separator else 3)
    assert row.count(shared.encode(" cat")[1]) == 20  # the longer one pays
    both = shared.encode(" the" * 100, " cat" * 90, truncate=True).tolist()
    assert (both.count(both[1]), both.count(both[-2])) == (31, 30)


def test_decode_undoes_encode(shared):
    assert shared.decode(shared.encode("Hello  world!\n ok")) == "Hello  world!\n ok"
    assert shared.decode(shared.encode("ab", "cd")) == "abcd"
    assert shared.decode(shared.encode("ab", "cd", no_separator=False)) == ["ab", "cd"]
    batch = collate_tokens([shared.encode("Hello world!"), shared.encode("a")], pad_idx=1)
    assert shared.decode(batch) == ["Hello world!", "a"]
    assert shared.decode([shared.encode("x"), shared.encode("y")]) == ["x", "y"]
    assert shared.decode(shared.encode("")) == ""
    assert shared.decode([]) == ""
    assert shared.decode([0, 31414, 50264, 2]) == "Hello<mask>"


def test_padding_to_a_shape():
    rows = [np.array([0, 5, 2]), np.array([0, 2])]
    wide = collate_tokens(rows, 1, pad_to_length=5, pad_to_bsz=3)
    assert wide.tolist() == [[0, 5, 2, 1, 1], [0, 2, 1, 1, 1], [1] * 5]
    left = collate_tokens(rows, 1, left_pad=True, pad_to_multiple=4)
    assert left.tolist() == [[1, 0, 5, 2], [1, 1, 0, 2]]
    assert collate_tokens(rows, 1, None, False, True, 2, 3, 1).tolist() == [[2, 0, 5], [2, 0, 1]]


def test_fairseqs_names_for_the_text_side(shared):
    assert shared.bpe.encode("Hello world") == "15496 995"
    assert shared.task.source_dictionary.index("<mask>") == 50264
    assert shared.task.target_dictionary.pad() == 1
    assert shared.task.label_dictionary is None
    assert shared.max_positions == (64, 64)


# --- Features -------------------------------------------------------------------------------------


def test_features_are_the_decoders(shared):
    tokens = shared.encode("Hello world!")
    features = shared.extract_features(tokens)
    source = shared.model.encode(shared.params, jnp.asarray(tokens)[None])
    prev = jnp.asarray([[2, 0, 31414, 232, 328]])
    expected = shared.model.decode(shared.params, prev, source, return_all_hiddens=True)
    np.testing.assert_allclose(features, expected.features, atol=1e-5)
    layers = shared.extract_features(tokens, return_all_hiddens=True)
    assert len(layers) == 3 and (layers[-1] == features).all()
    for ours, theirs in zip(layers, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_features_of_lists_arrays_and_rows_agree(shared):
    rows = [shared.encode(t) for t in ("Hello world!", "a", " the" * 30, "two words")]
    found = shared.extract_features(rows)
    padded = shared.extract_features(collate_tokens(rows, pad_idx=1))
    assert padded.shape == (4, 32, 16)
    for i, row in enumerate(rows):
        assert found[i].shape == (len(row), 16)
        alone = shared.extract_features(row)
        assert alone.shape == (1, len(row), 16)
        np.testing.assert_allclose(found[i], alone[0], atol=1e-5)
        np.testing.assert_allclose(padded[i, : len(row)], alone[0], atol=1e-5)
        assert not padded[i, len(row) :].any()
    layers = shared.extract_features(rows, return_all_hiddens=True)
    assert [len(row) for row in layers] == [3] * 4
    np.testing.assert_allclose(layers[1][2], found[1], atol=1e-6)


def test_padding_changes_nothing_on_either_side(shared):
    rows = [shared.encode(t) for t in ("Hello world!", " the" * 9, "two words")]
    alone = shared.extract_features(rows)
    width = max(map(len, rows))
    for left in (True, False):
        batch = collate_tokens(rows, pad_idx=1, left_pad=left)
        found = shared.extract_features(batch)
        for row, features, expected in zip(batch, found, alone, strict=True):
            np.testing.assert_allclose(features[row != 1], expected, atol=1e-5)
            assert not features[row == 1].any()
        assert shared.extract_features(list(batch))[0].shape == (width, 16)
        assert shared.extract_features(batch[2]).shape == (1, width, 16)
        np.testing.assert_allclose(shared.extract_features(batch[2])[0], found[2], atol=1e-5)
        hypotheses = shared.generate(batch, beam=2, max_len_b=4)
        for one, other in zip(hypotheses, shared.generate(rows, beam=2, max_len_b=4), strict=True):
            assert one[0]["tokens"].tolist() == other[0]["tokens"].tolist()


def test_a_stream_compiles_once_per_bucket_at_most(bart):
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 50000, n).astype(np.int32) for n in rng.integers(3, 64, 60)]
    bart.extract_features(rows)
    compiled = bart._engine.features._hidden_states._cache_size()
    assert 1 < compiled <= len(buckets_up_to(64, BUCKETS))
    bart.extract_features(rows)
    assert bart._engine.features._hidden_states._cache_size() == compiled


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ("Hello", TypeError, r"takes token ids, not text; call encode\(text\) first"),
        (["Hello"], TypeError, "takes token ids, not text"),
        ([], ValueError, "empty batch"),
        (np.array([], np.int32), ValueError, "row 0 is empty"),
        (np.zeros((0, 4), np.int32), ValueError, "empty batch"),
        ([np.array([0, 2]), np.array([], np.int32)], ValueError, "row 1 is empty"),
        (np.array([0.0, 2.0]), TypeError, "row 0 has dtype float64; token ids are integers"),
        (np.array([0, 50265, 2]), ValueError, "row 0 holds the id 50265, outside .* 50265"),
        ([np.array([0, 2]), np.array([-1, 2])], ValueError, "row 1 holds the id -1"),
        (np.zeros((1, 2, 2), np.int32), ValueError, r"row 0 has shape \(1, 2, 2\)"),
        (np.zeros(65, np.int32), ValueError, "exceeds maximum length: 65 > 64"),
    ],
)
def test_wrong_ids_are_refused(shared, tokens, error, message):
    with pytest.raises(error, match=message):
        shared.extract_features(tokens)


# --- Heads ----------------------------------------------------------------------------------------


def test_predict_takes_rows_with_different_numbers_of_eos(bart):
    bart.register_classification_head("new", num_classes=3)
    rows = [
        bart.encode("one"),
        bart.encode("one", "two"),
        bart.encode("a", "b", no_separator=False),
    ]
    together = bart.predict("new", rows)
    assert together.shape == (3, 3) and together.dtype == np.float32
    np.testing.assert_allclose(np.exp(together).sum(1), 1, rtol=1e-5)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(bart.predict("new", row)[0], together[i], atol=1e-5)
    for left in (False, True):
        padded = bart.predict("new", collate_tokens(rows, pad_idx=1, left_pad=left))
        np.testing.assert_allclose(padded, together, atol=1e-5)
    logits = bart.predict("new", rows, return_logits=True)
    np.testing.assert_allclose(jax.nn.log_softmax(logits), together, atol=1e-5)


def test_predict_after_generate_is_predict_before(bart):
    """In fairseq a beam leaves its size behind, and predict answers for other rows or fails."""
    bart.register_classification_head("new", num_classes=3)
    rows = [bart.encode(t) for t in ("one", "two three", "four", "five six seven")]
    before = bart.predict("new", rows)
    features = bart.extract_features(rows)
    bart.generate(rows, beam=4, max_len_b=5)
    np.testing.assert_array_equal(bart.predict("new", rows), before)
    for a, b in zip(bart.extract_features(rows), features, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_head_compiles_nothing_but_itself(bart):
    bart.register_classification_head("a", num_classes=2)
    rows = [bart.encode(t) for t in ("one", "two three")]
    bart.predict("a", rows)
    sentence = bart._engine.features._sentence
    compiled = sentence._cache_size()
    bart.register_classification_head("b", num_classes=5, inner_dim=7)
    assert bart.predict("b", rows).shape == (2, 5)
    bart.remove_classification_head("a")
    bart.predict("b", rows)
    assert sentence._cache_size() == compiled
    with pytest.raises(KeyError, match="there is no head 'a'; there are: b"):
        bart.predict("a", rows)


def test_classify_gives_label_names(bart):
    with pytest.raises(ValueError, match="say which head: head=NAME; there are: none"):
        bart.classify("fine")
    bart.register_classification_head("mood", labels=["bad", "good"])
    results = bart.classify(["a fine film", ("one", "two"), " the" * 100])
    assert len(results) == 3
    for (label, probability), row in zip(
        results,
        np.exp(bart.predict("mood", bart.encode(["a fine film", ("one", "two")]))),
        strict=False,
    ):
        assert label == ("bad", "good")[row.argmax()] and probability == pytest.approx(row.max())
    for text, (label, probability) in zip(["a fine film", ("one", "two")], results, strict=False):
        assert bart.classify(text, head="mood") == (label, pytest.approx(probability, abs=1e-5))
    bart.register_classification_head("other", num_classes=2)
    assert bart.classify("x", head="other")[0] in (0, 1)
    with pytest.raises(ValueError, match="there are: mood, other"):
        bart.classify("x")
    with pytest.raises(ValueError, match="empty batch"):
        bart.classify([], head="mood")


def test_a_regression_head_gives_its_value(bart):
    bart.register_classification_head("stsb", regression=True)
    value = bart.predict("stsb", bart.encode("one", "two"))
    assert value.shape == (1, 1) and value[0, 0] != 0
    with pytest.raises(ValueError, match="regression head has no classes"):
        bart.classify("one", head="stsb")


def test_labels_are_fairseqs_label_dictionary(bart):
    bart.register_classification_head(
        "sentence_classification_head", labels=["entailment", "not_entailment"]
    )
    labels = bart.task.label_dictionary
    assert labels.string([1 + labels.nspecial]) == "not_entailment"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a"}, "head 'a' needs num_classes >= 1, or labels"),
        ({"name": "a", "num_classes": 0}, "num_classes=0 must be a number, 1 or more"),
        ({"name": "a", "num_classes": 3, "labels": ["x", "y"]}, "2 labels for 3 classes"),
        ({"name": "a", "num_classes": 2, "regression": True}, "one output, not 2"),
        ({"name": "a/b", "num_classes": 2}, "'a/b' cannot name a head"),
    ],
)
def test_wrong_heads_are_refused(bart, arguments, message):
    with pytest.raises(ValueError, match=message):
        bart.register_classification_head(**arguments)
    assert not bart.heads


def test_registering_again_with_another_size_warns_and_replaces(bart, caplog):
    bart.register_classification_head("a", 2)
    bart.register_classification_head("a", num_classes=3)
    assert "re-registering head 'a' with num_classes 3 (was 2)" in caplog.text
    assert bart.predict("a", bart.encode("x")).shape == (1, 3)


def test_a_row_without_eos_is_refused(bart):
    bart.register_classification_head("a", 2)
    with pytest.raises(ValueError, match=r"row 1 has no </s> \(2\)"):
        bart.predict("a", [np.array([0, 2]), np.array([0, 5])])


# --- Parameters -----------------------------------------------------------------------------------


def test_params_can_be_assigned_without_compiling(bart):
    bart.register_classification_head("a", 2)
    row = bart.encode("one two")
    before = bart.predict("a", row)
    sentence = bart._engine.features._sentence
    compiled, head_compiled = sentence._cache_size(), bart.heads["a"].logits._cache_size()
    original = bart.params
    bart.params = jax.tree.map(lambda x: 0.5 * x, original)
    assert not np.allclose(bart.predict("a", row), before, atol=1e-3)
    bart.params = jax.tree.map(np.asarray, original)  # NumPy's arrays too
    np.testing.assert_array_equal(bart.predict("a", row), before)
    assert sentence._cache_size() == compiled
    assert bart.heads["a"].logits._cache_size() == head_compiled


def test_params_that_do_not_fit_are_refused(bart):
    bart.register_classification_head("a", 2)
    good = bart.params
    missing = {path: x for path, x in good.items() if path != "encoder/layers_0/fc1"}
    with pytest.raises(ValueError, match="encoder/layers_0/fc1"):
        bart.params = missing
    wrong = bart.params
    wrong["encoder/layers_0/fc1"]["w"] = np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match=r"encoder/layers_0/fc1.*\(3, 3\).*\(16, 24\)"):
        bart.params = wrong
    integers = bart.params
    integers["encoder/layers_0/fc1"]["w"] = np.zeros((16, 24), np.int32)
    with pytest.raises(ValueError, match="fc1/w has dtype int32; parameters are floats"):
        bart.params = integers
    headless = {path: x for path, x in good.items() if "heads" not in path}
    with pytest.raises(ValueError, match=r"have the heads \[\], the model \['a'\]"):
        bart.params = headless
    # What the property returned is a copy: the model is as it was.
    np.testing.assert_array_equal(
        bart.params["encoder/layers_0/fc1"]["w"], good["encoder/layers_0/fc1"]["w"]
    )


def test_loss_is_the_cross_entropy_of_the_target(shared):
    src = collate_tokens([shared.encode("one two three"), shared.encode("a")], pad_idx=1)
    target = collate_tokens([shared.encode("three"), shared.encode("b c d")], pad_idx=1)
    total, count = shared.loss(shared.params, None, {"src_tokens": src, "target": target})
    expected = 0.0
    for s, t in zip(src, target, strict=True):
        s, t = s[s != 1], t[t != 1]
        source = shared.model.encode(shared.params, jnp.asarray(s)[None])
        prev = jnp.asarray([[t[-1], *t[:-1]]])
        features = shared.model.decode(shared.params, prev, source).features
        logp = jax.nn.log_softmax(shared.model.project(shared.params, features))[0]
        expected -= float(logp[np.arange(len(t)), np.asarray(t)].sum())
    assert int(count) == int((target != 1).sum())
    np.testing.assert_allclose(float(total), expected, rtol=1e-5)
    given = {"src_tokens": src, "target": target, "prev_output_tokens": target}
    assert abs(float(shared.loss(shared.params, None, given)[0]) - expected) > 1e-3


def test_loss_with_a_key_has_dropout(shared):
    row = shared.encode("one two")[None]
    batch = {"src_tokens": row, "target": row}
    first, again, other = (
        float(shared.loss(shared.params, jax.random.key(k), batch)[0]) for k in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("regression", [False, True])
def test_an_optax_loop_of_ones_own(bart, regression):
    bart.register_classification_head(
        "h", num_classes=1 if regression else 2, regression=regression
    )
    texts = ["good film", "bad film", "very good", "very bad"]
    target = np.array([1.0, -1.0, 1.0, -1.0]) if regression else np.array([1, 0, 1, 0])
    batch = {"src_tokens": collate_tokens(bart.encode(texts), pad_idx=1), "target": target}
    optimizer = optax.adam(3e-3)

    @jax.jit
    def update(params, state, key):
        def mean(params):
            total, count = bart.loss(params, key, batch, head="h")
            return total / count

        loss, grads = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    params = bart.params
    state = optimizer.init(params)
    losses = []
    for step in range(40):
        params, state, loss = update(params, state, jax.random.key(step))
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]
    bart.params = params
    found = bart.predict("h", batch["src_tokens"])
    if regression:
        np.testing.assert_allclose(found[:, 0], target, atol=0.5)
    else:
        np.testing.assert_array_equal(found.argmax(dim=1), target)


# --- Saving, loading, moving ----------------------------------------------------------------------


def test_save_and_load_are_exact(bart, tmp_path):
    bart.register_classification_head("mood", labels=["bad", "good"])
    bart.save(tmp_path / "model")
    again = bart_hk.load(tmp_path / "model")
    assert again.config == bart.config
    for path, leaves in bart.params.items():
        for name, array in leaves.items():
            np.testing.assert_array_equal(again.params[path][name], array)
    row = bart.encode("Hello world!")
    np.testing.assert_array_equal(again.encode("Hello world!"), row)
    np.testing.assert_array_equal(again.predict("mood", row), bart.predict("mood", row))
    assert again.classify("Hello world!") == bart.classify("Hello world!")
    same = bart_hk.BARTModel.from_pretrained(str(tmp_path / "model"), bpe="gpt2")
    np.testing.assert_array_equal(same.extract_features(row), bart.extract_features(row))


def test_load_takes_dtype_device_and_config_fields(bart, tmp_path):
    bart.save(tmp_path)
    low = bart_hk.load(tmp_path, dtype="bfloat16", device="cpu", dropout=0.3)
    assert low.config.dropout == 0.3
    assert {x.dtype for x in jax.tree.leaves(low.params)} == {jnp.dtype("bfloat16")}
    assert low.device == jax.devices("cpu")[0]
    row = bart.encode("Hello world!")
    features = low.extract_features(row)
    assert features.dtype == jnp.bfloat16
    np.testing.assert_allclose(features.astype(np.float32), bart.extract_features(row), atol=0.2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "int8"}, ValueError, "dtype='int8' is not one of float32, bfloat16, float16"),
        ({"device": "tpu:3"}, ValueError, "device='tpu:3' is not there; jax sees"),
        ({"dropot": 0.1}, TypeError, "no field 'dropot'; did you mean 'dropout'"),
        ({"checkpoint_file": "checkpoint_best.pt"}, FileNotFoundError, "holds no checkpoint_best"),
        ({"data_name_or_path": "./nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_wrong_arguments_of_load_are_refused(shared, tmp_path, arguments, error, message):
    shared.save(tmp_path)
    with pytest.raises(error, match=message):
        bart_hk.load(tmp_path, **arguments)


def test_models_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model 'bart.huge': there is no directory"):
        bart_hk.load("bart.huge")
    with pytest.raises(FileNotFoundError, match="neither config.json .* nor model.pt"):
        bart_hk.load(tmp_path)
    (tmp_path / "other.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="name one of its checkpoints.*: other.pt"):
        bart_hk.load(tmp_path)
    with pytest.raises(CheckpointError, match="other.pt"):
        bart_hk.load(tmp_path / "other.pt")


def test_missing_tokenizer_files_are_named(shared, tmp_path):
    shared.save(tmp_path)
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "dict.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="vocab.json"):
        bart_hk.load(tmp_path)
    shared.text.save(tmp_path / "text")
    assert bart_hk.load(tmp_path, data_name_or_path="./text").encode("a").tolist() == [0, 102, 2]


def test_a_vocabulary_that_does_not_fit_is_refused(shared, tmp_path):
    shared.save(tmp_path)
    TextEncoder.gpt2("bart.base").save(tmp_path / "text")
    with pytest.raises(ValueError, match="51201 symbols.*50265"):
        bart_hk.load(tmp_path, data_name_or_path="./text")


def test_a_model_without_a_tokenizer_takes_ids_only(shared):
    bart = BARTHubInterface(shared.config, shared.params)
    assert bart.extract_features([0, 5, 2]).shape == (1, 3, 16)
    with pytest.raises(ValueError, match="made without a tokenizer"):
        bart.encode("text")


def test_moving_and_casting(bart):
    row = bart.encode("Hello world!")
    exact = bart.extract_features(row)
    assert bart.half() is bart and bart.extract_features(row).dtype == np.float16
    assert bart.bfloat16().extract_features(row).dtype == jnp.bfloat16
    np.testing.assert_allclose(bart.float().extract_features(row), exact, atol=0.3)
    assert bart.to("cpu") is bart.cpu() is bart
    assert bart.train().training and not bart.eval().training
    if jax.default_backend() == "cpu":
        with pytest.warns(UserWarning, match="jax sees no GPU: staying on"):
            assert bart.cuda() is bart


def test_a_digest_tells_models_apart(bart, tiny_params):
    same = BARTHubInterface(bart.config, tiny_params)
    assert same.digest() == bart.digest() and len(bart.digest()) == 16
    assert bart.bfloat16().digest() != same.digest()
    bart.float().params = jax.tree.map(lambda x: x + 0.01, same.params)
    assert bart.digest() != same.digest()
    other = BARTHubInterface(bart.config.replace(forced_bos_token_id=None), tiny_params)
    assert other.digest() != same.digest()
