"""Longer position tables and other vocabularies: what stays, what is new, what moves."""

import jax
import numpy as np
import pytest

from bart_hk.checkpoint.resize import drop_last_symbol, extend_positions, insert_symbols
from bart_hk.checkpoint.tree import check_parameters
from bart_hk.model import BART

UNTIED = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
IDS = [np.array([[0, 7, 9, 5, 2]]), np.array([[2, 0, 8, 6]])]


def logits(config, params, ids=IDS):
    bart = BART(config)
    return np.asarray(
        jax.jit(
            lambda params: bart.project(
                params, bart.decode(params, ids[1], bart.encode(params, ids[0])).features
            )
        )(params)
    )


def test_sines_go_on_by_themselves(small, random_params, assert_equal):
    config = small(decoder_learned_pos=False)
    params = random_params(config)
    longer, wider = extend_positions(params, config, 33)
    assert wider == config.replace(max_source_positions=33, max_target_positions=33)
    check_parameters(longer, wider)
    assert set(longer) == set(params) and "decoder/embed_positions" not in longer
    np.testing.assert_array_equal(logits(config, params), logits(wider, longer))


def test_positions_repeat_the_trained_ones(small, random_params, assert_equal):
    config = small(max_target_positions=10, position_offset=3)
    params = random_params(config)
    longer, wider = extend_positions(params, config, 33)
    assert wider == config.replace(max_source_positions=33, max_target_positions=33)
    check_parameters(longer, wider)
    for side, trained in (("encoder", 14), ("decoder", 10)):
        old = params[f"{side}/embed_positions"]["embeddings"]
        new = longer[f"{side}/embed_positions"]["embeddings"]
        np.testing.assert_array_equal(new[: trained + 3], old)
        for i in range(trained, 33):
            np.testing.assert_array_equal(new[3 + i], old[3 + i % trained])
    rest = {path: leaves for path, leaves in params.items() if "positions" not in path}
    assert_equal({path: longer[path] for path in rest}, rest)
    np.testing.assert_array_equal(logits(config, params), logits(wider, longer))
    long = [np.full((1, 30), 7), np.full((1, 25), 7)]
    assert np.isfinite(logits(wider, longer, long)).all()


def test_positions_do_not_shrink(small, random_params, assert_equal):
    config = small(max_target_positions=10)
    params = random_params(config)
    with pytest.raises(ValueError, match="max_source_positions is 14 and can only grow, .* 12"):
        extend_positions(params, config, 12)
    same, unchanged = extend_positions(params, config, 14)
    assert unchanged.max_source_positions == unchanged.max_target_positions == 14
    source = "encoder/embed_positions"
    assert_equal({source: same[source]}, {source: params[source]})


@pytest.mark.parametrize(
    "changes", [{}, {"share_all_embeddings": False}, UNTIED, {"final_logits_bias": True}]
)
def test_new_symbols_leave_the_others_as_they_were(small, random_params, changes):
    config = small(**changes)
    params = random_params(config)
    before = logits(config, params)
    for at in (59, 60, 30):  # before <mask>, at the end, in the middle
        resized, larger = insert_symbols(params, config, 4, before=at)
        assert larger == config.replace(vocab_size=64)
        check_parameters(resized, larger)
        after = logits(larger, resized)
        kept = [*range(at), *range(at + 4, 64)]
        np.testing.assert_allclose(after[..., kept], before, rtol=1e-6, atol=1e-6)
    appended, _ = insert_symbols(params, config, 4)
    at_end, _ = insert_symbols(params, config, 4, before=60)
    jax.tree.map(np.testing.assert_array_equal, appended, at_end)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_new_embeddings_are_drawn_once_by_their_seed(small, random_params, dtype):
    config = small(encoder_embed_dim=64, final_logits_bias=True, **UNTIED)
    params = random_params(config, dtype)
    resized, _ = insert_symbols(params, config, 200, before=20, seed=3)
    drawn = resized["encoder/embed_tokens"]["embeddings"][20:220]
    assert drawn.dtype == dtype
    np.testing.assert_array_equal(drawn, resized["decoder/embed_tokens"]["embeddings"][20:220])
    np.testing.assert_array_equal(drawn, resized["output_projection"]["w"][:, 20:220].T)
    assert not resized["final_logits_bias"]["b"][20:220].any()
    # N(0, 1 / D), as fairseq's; of 12800 numbers.
    wide = drawn.astype(np.float32)
    assert abs(wide.mean()) < 0.005 and abs(wide.std() - 0.125) < 0.003
    again, _ = insert_symbols(params, config, 200, before=50, seed=3)
    np.testing.assert_array_equal(again["encoder/embed_tokens"]["embeddings"][50:250], drawn)
    other, _ = insert_symbols(params, config, 200, before=20, seed=4)
    assert not np.array_equal(other["encoder/embed_tokens"]["embeddings"][20:220], drawn)


def test_special_ids_move_with_their_symbols(small, random_params):
    config = small(
        bos_token_id=51,
        eos_token_id=52,
        decoder_start_token_id=52,
        forced_bos_token_id=51,
        forced_eos_token_id=52,
        unk_token_id=None,
    )
    params = random_params(config)
    _, moved = insert_symbols(params, config, 3, before=52)
    assert (moved.bos_token_id, moved.eos_token_id, moved.pad_token_id) == (51, 55, 1)
    assert (moved.decoder_start_token_id, moved.forced_eos_token_id) == (55, 55)
    for count, before in ((-1, 3), (2, 61), (2, -1)):
        with pytest.raises(ValueError, match=f"cannot insert {count} symbols before id {before}"):
            insert_symbols(params, config, count, before=before)


def test_the_last_symbol_can_be_dropped(small, random_params):
    for changes in ({}, UNTIED, {"final_logits_bias": True}):
        config = small(**changes)
        params = random_params(config)
        resized, fewer = drop_last_symbol(params, config)
        check_parameters(resized, fewer)
        before = logits(config, params)
        np.testing.assert_allclose(logits(fewer, resized), before[..., :59], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="the last symbol, 59, is the bos_token_id"):
        drop_last_symbol(params, config.replace(bos_token_id=59))
