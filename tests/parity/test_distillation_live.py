"""A student's losses and updates beside torch's, drawn anew each time."""

import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.students import student
from bart_hk.config import BARTConfig
from bart_hk.model import BART
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.translation import Translation, TranslationConfig
from bart_hk.text import train_bpe
from bart_hk.training.distillation import DistillationConfig, Teacher
from bart_hk.training.step import Step
from tests.parameters import random_params

WORDS = "aa bb cc dd ee ff gg hh".split()
ENCODER = train_bpe([" ".join(WORDS)] * 5, 270)
BIG = BARTConfig(
    vocab_size=len(ENCODER.dictionary),
    encoder_embed_dim=24,
    encoder_ffn_embed_dim=40,
    decoder_ffn_embed_dim=32,
    encoder_layers=3,
    decoder_layers=6,
    encoder_attention_heads=3,
    decoder_attention_heads=4,
    max_source_positions=40,
    max_target_positions=40,
    dropout=0.0,
)
CASES = {
    "soft targets": {"alpha_mlm": 0.2, "alpha_ce": 0.8, "temperature": 2.0},
    "copied layers": {"alpha_mlm": 0.5, "alpha_ce": 1.0, "alpha_hid": 2.0, "temperature": 1.5},
    "supervising layers, normalised": {
        "alpha_mlm": 0.0,
        "alpha_ce": 0.3,
        "alpha_hid": 3.0,
        "supervise_forward": True,
        "normalize_hidden": True,
    },
}
# Of three and of six layers two: copied, and supervising.
LAYERS = {False: ((0, 2), (0, 5)), True: ((0, 2), (3, 5))}


@pytest.mark.parametrize("name", CASES)
def test_a_student_learns_what_torchs_does(oracle, tmp_path, name):
    options = DistillationConfig(teacher=str(tmp_path / "big"), **CASES[name])
    draw = random.Random(seed := random.randrange(10**6))
    big = random_params(BIG, 0.4)
    params, config = student(big, BIG, 2, 2)
    params = jax.tree.map(lambda a: np.asarray(a * 1.1, np.float32), params)
    write_model(tmp_path / "big", BIG, big, also=ENCODER.save)
    write_model(tmp_path / "small", config, params, also=ENCODER.save)
    rows = [[" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in "ab"] for _ in range(4)]
    lines = ["source\ttarget", *map("\t".join, rows)]
    (tmp_path / "texts.tsv").write_text("\n".join(lines) + "\n")
    task = Translation(TranslationConfig(train=str(tmp_path / "texts.tsv")), CrossEntropyConfig())
    task.encode(ENCODER, config)
    batch = task.train.batch(np.arange(4), 24, 4)
    save_file(batch, tmp_path / "batch.safetensors")
    encoder, decoder = LAYERS[options.supervise_forward]
    case = {
        name: getattr(options, name)
        for name in ("alpha_mlm", "alpha_ce", "alpha_hid", "temperature", "normalize_hidden")
    }
    # A bias of keys has no gradient but rounding's, which Adam would make as large as any other.
    case |= {"encoder": encoder, "decoder": decoder, "lr": 1e-3, "eps": 1e-4, "updates": 3}
    (tmp_path / "case.json").write_text(json.dumps(case))
    oracle("oracle_distillation.py", tmp_path)
    theirs = json.loads((tmp_path / "losses.json").read_text())

    teacher = Teacher(options, task, BART(config), ENCODER)
    step = Step(
        teacher.loss,
        optax.adam(case["lr"], eps=case["eps"]),
        0.0,
        jax.random.key(0),
        given=(teacher.params,),
    )
    state = step.init({"model": jax.tree.map(functools.partial(jnp.array, copy=True), params)})
    for update, expected in enumerate(theirs):
        state, sums = step.update(state, update, [batch])
        found = [
            float(sums.get(part, 0.0) / sums["count"])
            for part in ("own_loss", "soft_loss", "hidden_loss")
        ]
        if not options.alpha_hid:
            expected[2] = 0.0
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=f"seed {seed}")
    assert theirs[0] != theirs[2]
    mine = jax.device_get(state["params"]["model"])
    after = read_model(tmp_path / "after").params
    assert mine.keys() == after.keys()
    for path, leaf in after.items():
        for name, array in leaf.items():
            np.testing.assert_allclose(
                mine[path][name], array, atol=1e-5, err_msg=f"seed {seed}: {path}"
            )
