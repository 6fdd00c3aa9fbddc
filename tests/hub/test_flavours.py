"""Models of one stack through the hub: what they can do, and what they are not asked twice."""

import math

import numpy as np
import pytest

import bart_hk
from bart_hk.cli.plot_attention import draw
from bart_hk.config import BARTConfig
from bart_hk.hub import BARTHubInterface
from bart_hk.text import train_characters
from tests.parameters import random_params

TEXT = train_characters(["abcdefghijklmnopqrstuvwxyz "])
SIZES = BARTConfig(
    vocab_size=len(TEXT.dictionary),
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=2,
    encoder_attention_heads=2,
    decoder_ffn_embed_dim=24,
    decoder_layers=2,
    decoder_attention_heads=2,
    max_source_positions=32,
    max_target_positions=32,
)


def opened(flavour: str, folder) -> BARTHubInterface:
    """A model that went through a directory."""
    config = SIZES.replace(flavour=flavour)
    made = BARTHubInterface(config, random_params(config, 0.2), TEXT)
    made.register_classification_head("mood", 2, labels=["bad", "good"])
    made.save(folder)
    found = bart_hk.load(folder)
    assert found.config == config
    for path, leaves in made.params.items():
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, found.params[path][name])
    return found


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return opened("encoder_only", tmp_path_factory.mktemp("reader") / "model")


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return opened("decoder_only", tmp_path_factory.mktemp("writer") / "model")


def test_a_reader_has_its_encoders_features(reader):
    ids = reader.encode("so it goes")
    found = reader.extract_features(ids)
    expected = reader.model.encode(reader.params, np.asarray(ids)[None]).encoder_out
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert len(reader.extract_features(ids, return_all_hiddens=True)) == 3


def test_a_reader_fills_a_mask_in_its_place(reader):
    """In one pass, with what stands behind the mask in sight."""
    ((_, best), *_) = found = reader.fill_mask("so i<mask> goes", topk=5)
    assert len(found) == 5 and found[0][0].startswith("so i") and found[0][0].endswith(" goes")
    ids = np.asarray(reader.encode("so i goes"))
    masked = np.insert(ids, 5, TEXT.mask_id)
    params = reader.params
    features = reader.model.encode(params, masked[None]).encoder_out
    logits = np.asarray(reader.model.project(params, features))[0, 5]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    special = [0, 1, 2, TEXT.mask_id]
    assert best == pytest.approx(np.delete(probabilities, special).max(), rel=1e-4)
    other = reader.fill_mask("so i<mask> gone", topk=1)
    assert other[0][1] != pytest.approx(best, rel=1e-6)


def test_a_reader_classifies(reader):
    label, probability = reader.classify("so it goes", head="mood")
    assert label in ("bad", "good") and 0.5 <= probability < 1


def test_a_writer_goes_on_after_its_input(writer):
    found = writer.generate(writer.encode("so it"), beam=3, max_len_b=6, min_len=2)
    assert len(found) == 3
    for hypothesis in found:
        begins = np.asarray(writer.encode("so it"))[:-1]
        tokens = np.asarray(hypothesis["tokens"])
        np.testing.assert_array_equal(tokens[: len(begins)], begins)
        assert 2 < len(tokens) - len(begins) <= 7
        # What the search says of every token, prompt included, is what reading says.
        scored = writer.score([tokens])[0]
        np.testing.assert_allclose(
            hypothesis["positional_scores"][:-1], scored["positional_scores"][:-1], atol=1e-4
        )
        assert hypothesis["attention"].shape == (0, len(tokens))


def test_a_writers_texts_begin_with_the_prompt(writer):
    texts = writer.sample(["so it", "a", ""], max_len_b=5)
    assert [text[:n] for text, n in zip(texts, (5, 1, 0), strict=True)] == ["so it", "a", ""]
    assert all(len(text) <= n + 5 for text, n in zip(texts, (5, 1, 0), strict=True))
    assert "".join(writer.stream("so it", max_len_b=5)) == texts[0]
    drawn = writer.sample("so it", sampling=True, max_len_b=5, seed=1)
    assert drawn.startswith("so it")


def test_a_writers_perplexity_is_the_texts_own(writer):
    ids = np.asarray(writer.encode("so it"))
    previous = np.concatenate([[SIZES.decoder_start_token_id], ids[:-1]])
    params = writer.params
    decoded = writer.model.decode(params, previous[None])
    logits = np.asarray(writer.model.project(params, decoded.features))[0]
    logits = logits - logits.max(1, keepdims=True)
    log_probs = (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(len(ids)), ids]
    assert writer.perplexity("so it") == pytest.approx(math.exp(-log_probs.mean()), rel=1e-4)
    loss, count = writer.loss(params, None, {"target": ids[None]})
    assert float(loss) == pytest.approx(-log_probs.sum(), rel=1e-4) and float(count) == len(ids)


def test_attention_is_that_of_the_stack_there_is(reader, writer):
    read, written = reader.attention("so"), writer.attention("so")
    assert read.encoder.shape == (2, 2, 4, 4) and not read.decoder.size and not read.cross.size
    assert written.decoder.shape == (2, 2, 4, 4) and not written.encoder.size
    np.testing.assert_allclose(written.decoder.sum(-1), 1, rtol=1e-5)
    for model, kind in ((reader, "encoder"), (writer, "decoder")):
        found = model.attention("so")
        shown = [model.token_labels(ids) for ids in (found.src_tokens, found.prev_output_tokens)]
        titles = [axes.get_title() for axes in draw(found, *shown, "one stack").axes]
        assert titles == [f"{kind}, layer 0", f"{kind}, layer 1"]
        with pytest.raises(ValueError, match=f"a source and a target.*flavour={kind}_only"):
            model.attention("so", "what")


READS, WRITES = "flavour=encoder_only", "flavour=decoder_only"


@pytest.mark.parametrize(
    ("who", "ask", "what"),
    [
        ("reader", lambda b: b.sample("so it"), f"generation needs a decoder.*{READS}"),
        ("reader", lambda b: b.generate(b.encode("so")), f"generation needs a decoder.*{READS}"),
        ("writer", lambda b: b.sample("so", stop_strings="it"), "cannot tell what an id adds to a"),
        ("reader", lambda b: b.stream("so it"), f"generation needs a decoder.*{READS}"),
        ("reader", lambda b: b.score("so it"), f"scoring a text needs a decoder.*{READS}"),
        ("reader", lambda b: b.fill_mask("a<mask>", candidates=["b"]), f"needs a dec.*{READS}"),
        ("reader", lambda b: b.fill_mask("a<mask>", beam=4), "beam: options of a search"),
        ("reader", lambda b: b.fill_mask("<mask>a<mask>"), "has 2 <mask> tokens; exactly one"),
        ("writer", lambda b: b.fill_mask("a<mask>"), f"filling a mask needs an enc.*{WRITES}"),
        ("writer", lambda b: b.model.encode(b.params, [[0]]), f"encoding .* an encoder.*{WRITES}"),
        ("writer", lambda b: b.sample("a", match_source_len=True), f"match_source.*{WRITES}"),
        (
            "writer",
            lambda b: b.generate(b.encode("a"), print_alignment="hard"),
            f"print_alignment=hard needs an encoder.*{WRITES}",
        ),
        ("writer", lambda b: b.sample("a", prefix_tokens="b"), "goes on after its input: write"),
        ("writer", lambda b: b.generate(b.encode("a"), encoder_out=1), f"encoder_out.*{WRITES}"),
        (
            "writer",
            lambda b: b.sample("a" * 30),
            "input 0 has 31 tokens, after which there is no room for min_len=1 more in the model's "
            "32 positions",
        ),
    ],
)
def test_what_a_stack_cannot_do_is_one_line(request, who, ask, what):
    with pytest.raises((ValueError, TypeError), match=what) as error:
        ask(request.getfixturevalue(who))
    assert "\n" not in str(error.value)
