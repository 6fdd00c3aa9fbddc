"""The denoising task: from a folder of stores to batches and a loss."""

import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bart_hk.config import BARTConfig
from bart_hk.data.batching import batch_rows, bucket, choose_buckets, plan_batches
from bart_hk.data.documents import find_files
from bart_hk.data.noising import PRESETS, NoiseConfig, word_starts
from bart_hk.data.preprocessing import preprocess
from bart_hk.data.readers import DataError
from bart_hk.data.store import write_store
from bart_hk.model import BART
from bart_hk.tasks.denoising import Denoising, DenoisingConfig, noise_config
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.text import TextEncoder, train_bpe
from bart_hk.training.throughput import batch_costs

WORDS = "the cat sat on a mat and saw his dog under that old tree".split()
ENCODER = train_bpe([" ".join(WORDS) + "."] * 5, 300)
MODEL = BARTConfig(
    vocab_size=len(ENCODER.dictionary),
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=32,
    decoder_ffn_embed_dim=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_source_positions=64,
    max_target_positions=64,
)


def write(
    folder: Path,
    documents: int = 60,
    seed: int = 0,
    valid: int = 10,
    encoder: TextEncoder = ENCODER,
) -> Path:
    """A data folder; every document has 6 lines of 3 to 7 words and a full stop."""
    rng = np.random.default_rng(seed)

    def text(count: int) -> str:
        lines = (" ".join(rng.choice(WORDS, rng.integers(3, 8))) + "." for _ in range(6 * count))
        return "".join(line + ("\n\n" if i % 6 == 5 else "\n") for i, line in enumerate(lines))

    folder.mkdir(parents=True)
    (folder / "train.txt").write_text(text(documents))
    files = find_files([folder / "train.txt"])
    held = []
    if valid:
        (folder / "valid.txt").write_text(text(valid))
        held = find_files([folder / "valid.txt"])
    preprocess(files, folder, lambda: encoder, valid=held, workers=1)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("denoising") / "data")


def task(data: Path | str, **options) -> Denoising:
    config = {"tokens_per_sample": 48, "seed": 1} | options
    return Denoising(DenoisingConfig(data=str(data), **config), CrossEntropyConfig())


def encoded(data: Path | str, model: BARTConfig = MODEL, **options) -> Denoising:
    made = task(data, **options)
    made.encode(ENCODER, model)
    return made


def test_a_batch_asks_for_the_text_behind_the_noise(data):
    made = encoded(data)
    rows = np.arange(10)
    batch = made.train.batch(rows, 48, 12)
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(
        ("src_tokens", "prev_output_tokens", "target"), np.int32
    )
    target, previous, source = batch["target"], batch["prev_output_tokens"], batch["src_tokens"]
    assert target.shape == previous.shape == (12, 48) and source.shape[0] == 12
    assert (target[10:] == MODEL.pad_token_id).all() and (source[10:] == MODEL.pad_token_id).all()
    whole = (data / "train.txt").read_text()
    hidden = 0
    for row in range(10):
        tokens = target[row][target[row] != MODEL.pad_token_id]
        assert len(tokens) == made.train.lengths[row]
        assert tokens[0] == MODEL.bos_token_id and tokens[-1] == MODEL.eos_token_id
        text = ENCODER.decode(tokens)
        assert text.replace(".", ".\n").splitlines()[0] in whole
        assert previous[row][: len(tokens)].tolist() == [tokens[-1], *tokens[:-1]]
        hidden += (source[row] == ENCODER.mask_id).sum()
    assert hidden > 10


def test_both_sides_are_padded_by_less_than_a_tenth(tmp_path):
    """Sources are shorter than their targets, and by how much hangs on the noise. Half of the
    blocks are full, the others where documents end."""
    folder, rng = write(tmp_path / "data", documents=1, valid=0), np.random.default_rng(0)
    sizes = np.where(rng.random(4000) < 0.5, 254, rng.integers(8, 255, 4000))
    words = np.flatnonzero(word_starts(ENCODER.bpe, ENCODER.dictionary))
    tokens = rng.choice(words[words > MODEL.eos_token_id + 1], sizes.sum())
    tokens[np.cumsum(sizes) - 1] = MODEL.eos_token_id
    write_store(folder / "train", tokens, sizes, 300)
    model = MODEL.replace(max_source_positions=256, max_target_positions=256)
    made = encoded(folder, model, tokens_per_sample=256, sample_break_mode="eos")
    buckets = choose_buckets(made.train.lengths)
    batches = []
    for rows in plan_batches(made.train.lengths, max_tokens=4096, buckets=buckets, shuffle=(1, 1)):
        length = bucket(int(made.train.lengths[rows].max()), buckets)
        batches.append(made.train.batch(rows, length, batch_rows(length, max_tokens=4096)))
    costs = batch_costs(MODEL, batches)
    assert 0.05 < costs["padding"] / costs["positions"] < 0.1
    shapes = {(b["src_tokens"].shape, b["target"].shape) for b in batches}
    assert len(shapes) <= 3 * len(buckets)  # each is a program


def test_an_encoder_alone_is_asked_in_place_for_what_was_replaced(data):
    alone = MODEL.replace(flavour="encoder_only")
    made = encoded(data, alone, noise="token_masking", mask_random=0.3)
    rows = np.arange(10)
    sources, targets = made.train.pairs(rows)
    batch = made.train.batch(rows, 48, 12)
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(
        ("src_tokens", "places", "target"), np.int32
    )
    assert batch["src_tokens"].shape == (12, 48)
    assert batch["places"].shape == batch["target"].shape == (12, 18)  # 0.3 x 48, then an eighth
    assert (batch["target"][10:] == MODEL.pad_token_id).all()
    whole = np.full((12, 48), MODEL.pad_token_id)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        changed = np.flatnonzero(source != target)
        count = (batch["target"][row] != MODEL.pad_token_id).sum()
        assert batch["places"][row][:count].tolist() == changed.tolist() != []
        assert batch["target"][row][:count].tolist() == target[changed].tolist()
        whole[row, changed] = target[changed]
    # The loss is what it is where every position has logits, and so is the gradient.
    bart = BART(alone)
    params = {"model": bart.init(jax.random.key(0))}

    def loss(params, given):
        return made.loss(bart, params, None, given)[0]

    everywhere = {"src_tokens": batch["src_tokens"], "target": whole}
    found = jax.jit(jax.value_and_grad(loss))(params, batch)
    expected = jax.jit(jax.value_and_grad(loss))(params, everywhere)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    outputs = made.predict(bart, params, batch)
    assert outputs["tokens"].sum() == (whole != MODEL.pad_token_id).sum()


def test_documents_stay_apart(data):
    made = encoded(data, tokens_per_sample=64)
    documents = [d.replace("\n", "") for d in (data / "train.txt").read_text().split("\n\n")]
    _, targets = made.train.pairs(np.arange(len(made.train.lengths)))
    for row in targets:
        assert any(ENCODER.decode(row) in document for document in documents)
    together = encoded(data, tokens_per_sample=64, sample_break_mode="none")
    assert sum(made.train.lengths - 2) == sum(together.train.lengths - 2)


def test_noise_is_of_the_epoch_and_the_row_alone(data):
    made, again = encoded(data), encoded(data)
    sources, targets = made.train.pairs(np.arange(20))
    order = np.random.default_rng(0).permutation(20)
    shuffled, _ = again.train.pairs(order)
    for row, source in zip(order, shuffled, strict=True):
        assert np.array_equal(source, sources[row])
    for host in range(2):  # each of which reads every other row
        part, _ = encoded(data).train.pairs(np.arange(host, 20, 2))
        assert all(np.array_equal(a, b) for a, b in zip(part, sources[host::2], strict=True))
    made.begin_epoch(2)
    others, same = made.train.pairs(np.arange(20))
    assert all(np.array_equal(a, b) for a, b in zip(targets, same, strict=True))
    assert sum(np.array_equal(a, b) for a, b in zip(sources, others, strict=True)) < 3
    seeded, _ = encoded(data, seed=2).train.pairs(np.arange(20))
    assert sum(np.array_equal(a, b) for a, b in zip(sources, seeded, strict=True)) < 3


def test_the_noise_is_of_the_tokenizers_own_words_and_full_stops(tmp_path):
    """B7, and sentences that end otherwise than with fairseq's token "13"."""
    few = train_bpe([" ".join(WORDS) + "."] * 5, 270)
    assert max(len(few.encode(" " + word)) for word in WORDS) > 3
    folder = write(tmp_path / "data", encoder=few)
    made = task(folder, noise="token_masking", mask=0.4, mask_length="word")
    made.encode(few, MODEL)
    for source, target in zip(*made.train.pairs(np.arange(20)), strict=True):
        parts = np.split(source, np.flatnonzero(source == few.mask_id))
        left = " ".join(few.decode(part[part != few.mask_id]) for part in parts)
        whole = few.decode(target)
        words, left = (text.replace(".", " . ").split()[1:-1] for text in (whole, left))
        assert set(left) <= set(words) and len(left) < len(words)
    made = task(folder, noise="sentence_permutation")
    made.encode(few, MODEL)
    moved = 0
    for source, target in zip(*made.train.pairs(np.arange(20)), strict=True):
        one, other = ([s.strip() for s in few.decode(r).split(".")] for r in (source, target))
        assert sorted(one) == sorted(other)
        moved += one != other
    assert moved > 4  # blocks have two or three sentences


def test_validation_noise_never_changes(data):
    made = encoded(data)
    assert made.validates and made.valid is not None
    before = made.valid.batch(np.arange(5), 48, 5)
    made.begin_epoch(3)
    after = made.valid.batch(np.arange(5), 48, 5)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_shards_take_turns(data, tmp_path):
    other = write(tmp_path / "other", documents=20, seed=1)
    made = encoded(f"{data}:{other}")
    first, again = len(made.train.lengths), made.train.where([0])
    made.begin_epoch(2)
    assert len(made.train.lengths) < first and str(other) in made.train.where([0])
    made.begin_epoch(3)
    assert len(made.train.lengths) == first and made.train.where([0]) == again


def test_every_shard_is_looked_at_before_the_first_epoch(data, tmp_path, caplog):
    other = write(tmp_path / "other", documents=20, seed=1, valid=0)
    plain, made = encoded(f"{other}:{data}"), encoded(f"{data}:{other}", weights={"other": 2.0})
    assert made.shards == 2 and made.longest == plain.longest == 48
    assert len(plain.train.lengths) * 2 == (made.begin_epoch(2) or len(made.train.lengths))
    with pytest.raises(DataError, match="there is no corpus 'x' to weigh, only data"):
        encoded(f"{data}:{other}", weights={"x": 2.0})
    with caplog.at_level("INFO"):
        encoded(f"{data}:{other}")
    assert f"{other}, other: {len(plain.train.lengths)} blocks" in caplog.text
    (tmp_path / "empty").mkdir()
    write_store(tmp_path / "empty" / "train", np.full(5, 2), np.ones(5, np.int64), 300)
    with pytest.raises(DataError, match="empty/train.bin has no text"):
        encoded(f"{data}:{tmp_path / 'empty'}")


@pytest.mark.parametrize("role", ["train", "valid"])
def test_a_block_that_is_too_long_is_named_at_the_start(tmp_path, role):
    folder = write(tmp_path / "data", documents=5)
    write_store(folder / role, np.append(np.full(90, 9), 2), np.array([91]), 300)
    with pytest.raises(
        DataError,
        match=f"{role}, block 0 has 92 tokens, and the model 64 positions: take task.oversized=spl",
    ):
        encoded(folder, oversized="keep")


def test_what_is_left_out_is_named(data, tmp_path, caplog):
    inside = write(tmp_path / "books", documents=5)
    (tmp_path / "raw").mkdir()
    (tmp_path / ".git").mkdir()
    task(tmp_path)
    assert caplog.messages == [f"{tmp_path / 'raw'} is left out: it has no train.bin"]
    for name in ("train.bin", "train.idx"):
        shutil.copy(data / name, tmp_path)
    caplog.clear()
    task(tmp_path)
    assert caplog.messages == [f"{inside} is left out: task.data={tmp_path} has a train.bin itself"]
    (tmp_path / "raw" / "preprocess.journal").write_text("{}")
    for damaged in (tmp_path / "raw", tmp_path):
        (tmp_path / "train.bin").unlink(missing_ok=True)
        (tmp_path / "train.idx").unlink(missing_ok=True)
        with pytest.raises(DataError, match="raw is not finished; the same bart-hk-preprocess com"):
            task(damaged)


def test_several_corpora_with_weights(tmp_path):
    write(tmp_path / "data" / "big", documents=60)
    write(tmp_path / "data" / "small", documents=10, seed=1, valid=0)
    plain = encoded(tmp_path / "data")
    weighed = encoded(tmp_path / "data", weights={"small": 3.0})
    smoothed = encoded(tmp_path / "data", multilang_sampling_alpha=0.5)
    count = len(plain.train.lengths)
    small = sum("/small/" in plain.train.where([row]) for row in range(count))
    assert len(weighed.train.lengths) == count + 2 * small
    seen = sum("/small/" in smoothed.train.where([r]) for r in range(len(smoothed.train.lengths)))
    assert 1.5 * small < seen and abs(len(smoothed.train.lengths) - count) <= 2
    sources, _ = weighed.train.pairs(np.arange(count + 2 * small))
    assert not np.array_equal(sources[-1], sources[-1 - small])  # each time a noise of its own
    with pytest.raises(DataError, match="give task.weights or task.multilang_sampling_alpha, not"):
        encoded(tmp_path / "data", weights={"small": 3.0}, multilang_sampling_alpha=0.5)


def test_languages_end_their_blocks(tmp_path):
    """As fairseq's multilingual_denoising: <s> A </s> B </s> [lang], after [lang] the decoder."""
    for number, name in enumerate(("en_XX", "gu_IN")):
        write(tmp_path / "data" / name, documents=20, seed=number)
    languages = ENCODER.insert_symbols(["[en_XX]", "[gu_IN]"])
    model = MODEL.replace(vocab_size=len(languages.dictionary))
    made = task(tmp_path / "data", add_lang_token=True)
    made.encode(languages, model)
    count = len(made.train.lengths)
    batch = made.train.batch(np.arange(count), 64, count)
    seen = set()
    for row in range(count):
        target = batch["target"][row][: made.train.lengths[row]]
        name = Path(made.train.where([row]).split(",")[0]).parent.name
        assert languages.dictionary[target[-1]] == f"[{name}]"
        assert target[0] == 0 and target[-2] == MODEL.eos_token_id
        assert (target[1:-1] == MODEL.eos_token_id).sum() >= 1
        assert batch["prev_output_tokens"][row][0] == target[-1]
        seen.add(name)
    assert seen == {"en_XX", "gu_IN"}
    with pytest.raises(
        DataError, match=r"the tokenizer has no symbol \[(en_XX|gu_IN)\] for the co"
    ):
        task(tmp_path / "data", add_lang_token=True).encode(ENCODER, MODEL)


def test_presets_and_what_replaces_their_values():
    # The authors' command (fairseq's issue 1899) and the paper's section 2.
    infilling = {"mask": 0.3, "mask_length": "span-poisson", "replace_length": 1}
    for name, rest in (
        ("bart", {"mask_random": 0.1, "poisson_lambda": 3.5, "permute_sentences": 1.0}),
        ("paper", {"poisson_lambda": 3.0, "permute_sentences": 1.0}),
    ):
        assert vars(PRESETS[name]) == vars(NoiseConfig()) | infilling | rest
    assert noise_config(DenoisingConfig()) == PRESETS["bart"]
    config = DenoisingConfig(noise="paper", mask=0.35, rotate=0.1)
    assert noise_config(config) == PRESETS["paper"].__class__(
        **{**vars(PRESETS["paper"]), "mask": 0.35, "rotate": 0.1}
    )


def test_the_loss_is_that_of_the_targets_and_predict_sums_it_row_by_row(data):
    made = encoded(data)
    bart = BART(MODEL.replace(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0))
    params = made.init(bart, bart.init(jax.random.key(0)), jax.random.key(1), {})
    batch = made.train.batch(np.arange(6), 48, 8)
    loss, sums = made.loss(bart, params, jax.random.key(2), batch)
    assert int(sums["count"]) == made.train.lengths[:6].sum()
    rows = made.predict(bart, params, batch)
    np.testing.assert_allclose(rows["nll"].sum(), loss, rtol=1e-5)
    assert rows["tokens"].tolist() == [*made.train.lengths[:6], 0, 0]
    found = made.metrics({name: np.asarray(array)[:6] for name, array in rows.items()})
    np.testing.assert_allclose(found["loss"], loss / sums["count"], rtol=1e-5)
    np.testing.assert_allclose(found["ppl"], np.exp(found["loss"]))
    assert set(found) == {"loss", *made.metric_names} and 0 <= found["accuracy"] <= 100
    body, heads = made.parts(params)
    assert body is params["model"] and heads == {}


def test_a_few_steps_lower_the_loss(data):
    made = encoded(data)
    bart = BART(MODEL)
    params = made.init(bart, bart.init(jax.random.key(0)), jax.random.key(1), {})
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key, batch):
        def mean(params):
            loss, sums = made.loss(bart, params, key, batch)
            return loss / sums["count"]

        loss, grads = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state, seen = optimizer.init(params), []
    source = jnp.full((16, 64), MODEL.pad_token_id, jnp.int32)
    for number in range(40):
        rows = np.arange(16) + 16 * (number % 4)
        batch = made.train.batch(rows, 48, 16)
        batch["src_tokens"] = source.at[:, : batch["src_tokens"].shape[1]].set(batch["src_tokens"])
        params, state, loss = step(params, state, jax.random.key(number), batch)
        seen.append(float(loss))
    assert np.mean(seen[:3]) > 4 and np.mean(seen[-3:]) < 3.5, seen


def test_the_fingerprint_is_that_of_the_stores(data, tmp_path):
    same = write(tmp_path / "same")
    assert task(data).fingerprint() == task(same).fingerprint()
    assert task(data).fingerprint().keys() == {"train", "valid"}
    other = write(tmp_path / "other", seed=1)
    assert task(data).fingerprint()["train"] != task(other).fingerprint()["train"]
    # Two shards, an epoch of each in turn, are not two corpora of every epoch.
    shutil.copytree(data, tmp_path / "both" / "one")
    shutil.copytree(other, tmp_path / "both" / "two")
    corpora, shards = task(tmp_path / "both"), task(f"{data}:{other}")
    assert corpora.fingerprint()["train"] != shards.fingerprint()["train"]


# --- What is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "barts"}, "task.noise=barts is not one of token_masking, "),
        ({"mask": 2.0}, r"task.mask=2.0 must be in \[0, 1\]"),
        ({"tokens_per_sample": 2}, "task.tokens_per_sample=2 has no room for a token"),
    ],
)
def test_options_that_make_no_sense(data, options, message):
    with pytest.raises(DataError, match=message):
        task(data, **options)


@pytest.mark.parametrize(
    ("noise", "options", "read"),
    [
        ("token_masking", {"poisson_lambda": 2.0}, {"mask_length": "span-poisson"}),
        ("token_deletion", {"mask_random": 0.1}, {"replace_length": 1}),
        ("document_rotation", {"mask_random": 0.1}, {"insert": 0.1}),
        ("sentence_permutation", {"mask_length": "word"}, {"mask": 0.1}),
        ("none", {"replace_length": 0}, {"mask": 0.1}),
        ("text_infilling", {"sentence_ends": "."}, {"permute_sentences": 1.0}),
        ("bart", {"oversized": "keep", "sample_break_mode": "none"}, {"oversized": "split"}),
        ("bart", {"multilang_sampling_alpha": 0.5}, {"multilang_sampling_alpha": 1.0}),
    ],
)
def test_an_option_that_nothing_reads(data, noise, options, read):
    name, value = next(iter(options.items()))
    message = task(data, noise=noise, **options).unread()
    assert message is not None and message.startswith(f"task.{name}={value} does nothing with ")
    assert task(data, noise=noise, **(options | read)).unread() is None
    assert task(data, noise=noise).unread() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multilang_sampling_alpha": math.nan}, "alpha=nan must be at least 0, and finite"),
        ({"tokens_per_sample": 65}, "sample=65 is more than the model's 64 positions; lower it"),
        ({"sample_break_mode": "doc"}, "task: sample_break_mode='doc' is not one of none"),
        ({"oversized": "drop"}, "task: oversized='drop' is not one of split"),
        (
            {"oversized": "error", "tokens_per_sample": 8},
            "train.bin: sentence .* tokens, and a blo",
        ),
        (
            {"sentence_ends": "\u203b"},
            "task.noise=bart: permute_sentences needs the ids of the full st",
        ),
        ({"weights": {"x": 1.0}}, "there is no corpus 'x' to weigh, only data"),
        ({"weights": {"data": 0.0}}, "the weights of the corpora leave no row"),
    ],
)
def test_options_that_do_not_fit(data, options, message):
    with pytest.raises(DataError, match=message):
        encoded(data, **options)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="task.data is not set; give it a folder that bart-hk-prep"):
        Denoising(DenoisingConfig(), CrossEntropyConfig())
    with pytest.raises(DataError, match="nowhere is not a folder"):
        task(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no train.bin and train.idx, nor has a folder in it"):
        task(tmp_path)


def test_a_damaged_store_is_found_before_any_work(tmp_path):
    data = write(tmp_path / "data")
    whole = (data / "train.bin").read_bytes()
    (data / "train.bin").write_bytes(whole[:-2])
    with pytest.raises(DataError, match="train.bin ends early"):
        task(data)
    (data / "train.bin").write_bytes(whole[:-2] + b"\xff\xff")
    with pytest.raises(
        DataError, match="holds the id 65535, and the model's tokenizer has 295 sym"
    ):
        encoded(data)


def test_another_vocabulary(data, tmp_path):
    other = train_bpe(["quite another text, with other words"] * 5, 300)
    with pytest.raises(
        DataError, match="was made with another vocabulary: id 2.. is '.*' there an"
    ):
        task(data).encode(other, MODEL)
    # Stores alone say nothing of theirs, but their ids must be in it.
    for name in ("train.bin", "train.idx"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    task(tmp_path).encode(ENCODER, MODEL)
    with pytest.raises(DataError, match="and the model's tokenizer has 261 symbols"):
        small = train_bpe(["a"], 270)
        task(tmp_path).encode(small, MODEL)


def test_bart_base_and_large_differ_in_fillers_only(tmp_path):
    (tmp_path / "a.txt").write_text("One sentence. Two of them.\n")
    preprocess(find_files([tmp_path / "a.txt"]), tmp_path / "out", TextEncoder.gpt2, workers=1)
    base = TextEncoder.gpt2("bart.base")
    task(tmp_path / "out").encode(base, MODEL.replace(vocab_size=len(base.dictionary)))


def test_noise_that_lengthens_beyond_the_positions(data):
    made = encoded(data, insert=1.0, tokens_per_sample=64)
    with pytest.raises(
        DataError, match=r"train, block \d+: noise has made \d+ tokens of it, and th"
    ):
        made.train.batch(np.arange(5), 64, 5)


def test_a_tokenizer_without_mask(data):
    with pytest.raises(DataError, match="needs a <mask>, which the vocabulary does not have"):
        task(data).encode(ENCODER.fit(294), MODEL)
