"""Texts to latents and back through the hub: arcs, draws, and what is refused."""

import numpy as np
import pytest

import bart_hk
from bart_hk.cli.convert import convert
from bart_hk.cli.plot_attention import draw as draw_attention
from bart_hk.config import BARTConfig
from bart_hk.hub import BARTHubInterface
from bart_hk.hub.latent import between, slerp
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER as TEXT

PLAIN = BARTConfig(
    vocab_size=len(TEXT.dictionary),
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=16,
    encoder_layers=1,
    encoder_attention_heads=2,
    decoder_ffn_embed_dim=16,
    decoder_layers=1,
    decoder_attention_heads=2,
    max_source_positions=12,
    max_target_positions=12,
)
LATENT = PLAIN.replace(n_latent_tokens=5, latent_token_size=4, latent_activation="identity")


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    """A model that went through a directory."""
    folder = tmp_path_factory.mktemp("latent") / "model"
    made = BARTHubInterface(LATENT, random_params(LATENT, 0.5), TEXT)
    made.save(folder)
    found = bart_hk.load(folder)
    assert found.config == LATENT
    for path, leaves in made.params.items():
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, found.params[path][name])
    found.folder = folder
    return found


@pytest.fixture(scope="module")
def plain():
    return BARTHubInterface(PLAIN, random_params(PLAIN), TEXT)


def test_texts_and_ids_have_latents(bart):
    one, both = bart.encode_latent("abc"), bart.encode_latent(["abc", "so it is"])
    assert one.shape == (5, 4) and both.shape == (2, 5, 4) and both.dtype == np.float32
    np.testing.assert_allclose(both[0], one, atol=1e-5)
    np.testing.assert_allclose(bart.encode_latent(bart.encode("abc")), one, atol=1e-5)
    rows = bart_hk.hub.collate_tokens(bart.encode(["abc", "so it is"]), 1)
    np.testing.assert_allclose(bart.encode_latent(rows), both, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_latents_decode_to_what_their_texts_generate(bart):
    texts = ["abc", "so it is", "a"]
    latents, found = bart.encode_latent(texts), bart.generate(bart.encode(texts), beam=2)
    best = [bart.decode(hypotheses[0]["tokens"]) for hypotheses in found]
    assert bart.decode_latent(latents, beam=2) == best and len(set(best)) > 1
    assert bart.decode_latent(latents.reshape(3, 20), beam=2) == best
    several = bart.decode_latent(latents, beam=2, nbest=2)
    assert several == [[bart.decode(h["tokens"]) for h in hypotheses] for hypotheses in found]
    tokens = [hypotheses[0]["tokens"] for hypotheses in found]
    for row, scored in zip(found, bart.score(bart.encode(texts), tokens), strict=True):
        assert row[0]["attention"].shape == (5, len(row[0]["tokens"]))
        for name in ("positional_scores", "attention"):
            np.testing.assert_allclose(scored[name], row[0][name], atol=1e-4)


def test_similar_numbers_of_latents_share_a_program(bart):
    drawn = bart.sample_latent(4)
    first = bart.decode_latent(drawn, beam=2)
    search = bart._engine.generator._search
    before = search._cache_size()
    assert bart.decode_latent(drawn[:3], beam=2) == first[:3]
    assert search._cache_size() == before


def test_attention_is_to_the_latents(bart):
    found = bart.attention("ab", "so it")
    assert found.encoder.shape == (1, 2, 4, 4) and found.cross.shape == (1, 2, 7, 5)
    np.testing.assert_allclose(found.cross.sum(-1), 1, rtol=1e-5)
    labels = [bart.token_labels(row) for row in (found.src_tokens, found.prev_output_tokens)]
    panel = draw_attention(found, *labels, "x").axes[-1]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == [
        f"latent {i}" for i in range(5)
    ]


def test_arcs_and_lines():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 4))
    path = between(a, b, 5)
    assert path.shape == (5, 5, 4) and path.dtype == np.float32
    np.testing.assert_allclose(path[[0, -1]], np.stack([a, b]), rtol=1e-6)
    # Each latent token turns by equal angles.
    unit = path / np.linalg.norm(path, axis=-1, keepdims=True)
    whole = np.arccos((unit[0] * unit[-1]).sum(-1))
    ones = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
    turning = np.stack([slerp(*ones, t) for t in (0.25, 0.5)])
    np.testing.assert_allclose(np.arccos((turning[0] * ones[0]).sum(-1)), whole / 4, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(turning, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(between(a, b, 3, method="lerp")[1], (a + b) / 2, rtol=1e-6)
    # As one vector they turn together, by the angle of the whole.
    together = between(a, b, 3, whole=True)[1].reshape(-1)
    np.testing.assert_allclose(together, slerp(a.reshape(-1), b.reshape(-1), 0.5), rtol=1e-5)
    assert np.abs(together.reshape(5, 4) - between(a, b, 3)[1]).max() > 1e-2


@pytest.mark.parametrize("scale", [1.0, -1.0, 2.0, 0.0])
@pytest.mark.parametrize("whole", [False, True])
def test_vectors_without_an_arc_take_the_line(scale, whole):
    """Equal ones made the original's NaN."""
    a = np.random.default_rng(1).standard_normal((5, 4))
    path = between(a, scale * a, 11, whole=whole)
    assert np.isfinite(path).all()
    line = np.stack([(1 - t) * a + t * scale * a for t in np.linspace(0, 1, 11)])
    np.testing.assert_allclose(path, line, atol=1e-6)


def test_interpolations_begin_and_end_with_the_ends(bart):
    latents = bart.encode_latent(["abc", "so it is"])
    texts = bart.interpolate("abc", "so it is", steps=3, beam=2)
    assert texts == bart.interpolate(latents[0], "so it is", steps=3, beam=2)
    assert texts == bart.decode_latent(between(*latents, 3), beam=2)
    assert bart.interpolate("abc", "abc", 3, whole=True, beam=2) == [texts[0]] * 3
    line = bart.interpolate(*latents.reshape(2, 20), 3, method="lerp", beam=2)
    assert [line[0], line[-1]] == [texts[0], texts[-1]]


def test_draws_are_the_priors(bart):
    drawn = bart.sample_latent(2000, seed=3)
    assert drawn.shape == (2000, 5, 4) and abs(drawn.mean()) < 0.02
    assert drawn.std() == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(drawn, bart.sample_latent(2000, seed=3))
    assert np.abs(drawn - bart.sample_latent(2000, seed=4)).max() > 1
    np.testing.assert_allclose(bart.sample_latent(9, temperature=0.5, seed=3), drawn[:9] / 2)
    tanh = BARTHubInterface(LATENT.replace(latent_activation="tanh"), random_params(LATENT), TEXT)
    assert np.abs(tanh.sample_latent(99)).max() == 1
    assert len(set(bart.decode_latent(bart.sample_latent(3), beam=2))) > 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda b: b.encode_latent("a" * 40), None),
        (lambda b: b.encode_latent(np.zeros(13, int)), "row 0 has 13 tokens, and max_source_pos"),
        (
            lambda b: b.decode_latent(np.zeros((5, 3))),
            r"shape \(5, 3\) do not divide into n_latent",
        ),
        (
            lambda b: b.decode_latent(np.zeros(19)),
            r"of shape \(19,\) do not divide into n_latent_t",
        ),
        (lambda b: b.decode_latent(np.zeros((2, 4, 4))), "are none of this model's, which are"),
        (lambda b: b.decode_latent(np.zeros((0, 5, 4))), "are none of this model's"),
        (lambda b: b.decode_latent(np.full((5, 4), np.nan)), "a number that is not finite"),
        (lambda b: b.decode_latent("abc"), "latents are numbers, as encode_latent gives them, not"),
        (lambda b: b.decode_latent(np.zeros((5, 4)), match_source_len=True), "match_source_len=Tr"),
        (lambda b: b.interpolate("a", np.zeros((6, 4))), r"shape \(6, 4\) do not divide into"),
        (lambda b: b.interpolate(np.zeros((2, 5, 4)), "a"), r"a has the shape \(2, 5, 4\); interp"),
        (lambda b: b.interpolate("a", "b", steps=1), "steps=1 must be a number of at least 2"),
        (lambda b: b.interpolate("a", "b", method="arc"), "method='arc' is not one of slerp, lerp"),
        (lambda b: between(np.zeros((5, 4)), np.zeros((6, 4))), r"shape \(5, 4\) and b \(6, 4\)"),
        (lambda b: b.sample_latent(0), "count=0 must be a number of latents, at least 1"),
        (lambda b: b.sample_latent(temperature=-1.0), "temperature=-1.0 must be a number of at le"),
        (
            lambda b: b.generate([0, 2], print_alignment="hard"),
            "attends to n_latent_tokens=5 latents",
        ),
    ],
)
def test_what_cannot_be_is_one_line(bart, ask, message):
    if message is None:  # a text that is too long is cut, with a warning, as everywhere
        with pytest.warns(UserWarning, match="was cut"):
            assert ask(bart).shape == (5, 4)
        return
    with pytest.raises(ValueError, match=message) as error:
        ask(bart)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["encode_latent", "decode_latent", "interpolate", "sample_latent"])
def test_a_model_without_a_bottleneck_has_no_latents(plain, bart, what):
    arguments = {"interpolate": ("a", "b"), "sample_latent": ()}.get(what, ("a",))
    with pytest.raises(ValueError, match=f"{what} needs a model with a bottleneck") as error:
        getattr(plain, what)(*arguments)
    assert "\n" not in str(error.value)
    both = BARTHubInterface(LATENT, bart.params, TEXT, others=[(LATENT, bart.params)])
    with pytest.raises(ValueError, match=f"{what}: an ensemble of 2 models has no latents in com"):
        getattr(both, what)(*arguments)


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("hf", "transformers has no BART with n_latent_tokens=5; write it with --to native"),
        ("flax", "transformers has no BART with n_latent_tokens=5; write it with --to native"),
        ("per-head", "bart-base-jax has no BART with n_latent_tokens=5; write it with --to native"),
        ("fairseq", "n_latent_tokens=5, but a BART of fairseq's has no bottleneck; write it with"),
    ],
)
def test_other_formats_have_no_place_for_it(bart, tmp_path, to, message):
    with pytest.raises(ValueError, match=message) as error:
        convert(str(bart.folder), tmp_path / "out", to)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_our_own_keeps_it(bart, tmp_path):
    convert(str(bart.folder), tmp_path / "out", "native")
    assert bart_hk.load(tmp_path / "out").digest() == bart.digest()
