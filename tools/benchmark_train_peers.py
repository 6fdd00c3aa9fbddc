"""The peers that `benchmark_train.py` measures, each in a process of its own.

`python tools/benchmark_train_peers.py PEER FOLDER THREADS DROPOUT` answers each line of its input
with a line of JSON: "step" makes one update; "profile" (bart_hk's alone) makes one under the
profiler. With `make` as PEER it makes the model instead. Nothing outside the standard library is
imported before a peer asks for it, for they live in different environments.

Every peer: mean cross-entropy, gradients clipped to a norm of 1, Adam (betas 0.9 and 0.999, epsilon
1e-8 after bias correction) with a constant rate, float32; the same weights, ids and batch.
"""

import gzip
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LR, CLIP = 1e-4, 1.0
VOCABULARY, WIDTH, FFN, LAYERS, HEADS = 8192, 256, 1024, 4, 4  # bart.mini's shapes


def make(folder: Path) -> None:
    """The model with random weights, as transformers saves it."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        max_position_embeddings=512,
        dropout=0.0,
    )
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)


def read_batch(folder: Path) -> Any:
    """int32 [B, S], [B, T] and [B, T]: source, decoder input, target."""
    import numpy as np

    ids = json.loads((folder / "batch.json").read_text())
    return [np.asarray(ids[n], np.int32) for n in ("src_tokens", "prev_output_tokens", "target")]


def torch_step(folder: Path, dropout: float) -> Callable[[], float]:
    """Hugging Face transformers on torch, with its default (fused) attention."""
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration.from_pretrained(folder, dropout=dropout)
    model.train()
    source, previous, target = (torch.from_numpy(a).long() for a in read_batch(folder))
    adam = torch.optim.Adam(model.parameters(), lr=LR)

    def step() -> float:
        adam.zero_grad()
        out = model(
            input_ids=source,
            attention_mask=torch.ones_like(source),
            decoder_input_ids=previous,
            labels=target,
            use_cache=False,
        )
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
        return out.loss.item()

    return step


def flax_step(folder: Path, dropout: float) -> Callable[[], float]:
    """Hugging Face transformers on Flax, the whole update compiled, its buffers donated."""
    import functools

    import jax
    import optax
    import transformers

    model = transformers.FlaxBartForConditionalGeneration.from_pretrained(
        folder, from_pt=True, dropout=dropout
    )
    source, previous, target = read_batch(folder)
    adam = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(LR))
    state = [jax.tree.map(jax.numpy.array, model.params)]
    state.append(adam.init(state[0]))
    state.append(jax.random.key(0))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, opt: Any, key: Any) -> Any:
        key, drop = jax.random.split(key)

        def loss(params: Any) -> Any:
            logits = model(
                source,
                decoder_input_ids=previous,
                params=params,
                dropout_rng=drop,
                train=True,
            ).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()

        value, grads = jax.value_and_grad(loss)(params)
        changes, opt = adam.update(grads, opt, params)
        return optax.apply_updates(params, changes), opt, key, value

    def step() -> float:
        *state[:], value = update(*state)
        return float(value)

    return step


def our_step(folder: Path, dropout: float) -> Callable[[], float]:
    """The update that `bart-hk-train` makes."""
    import jax
    import jax.numpy as jnp

    from bart_hk.checkpoint.huggingface import read_model
    from bart_hk.memory import keep_freed_memory
    from bart_hk.model import BART
    from bart_hk.tasks.losses import CrossEntropyConfig, sequence_loss
    from bart_hk.training import optim
    from bart_hk.training.step import Step

    keep_freed_memory()
    stored = read_model(folder)
    bart = BART(stored.config.replace(dropout=dropout))
    adam = optim.optimizer(optim.AdamConfig(epsilon=optim.AdamEpsilon.optax), lambda n: LR)
    criterion = CrossEntropyConfig()

    def loss(params: Any, key: Any, batch: Any) -> Any:
        return sequence_loss(bart, params, key, batch, criterion)

    steps = Step(loss, adam, CLIP, jax.random.key(0))
    names = ("src_tokens", "prev_output_tokens", "target")
    batch = dict(zip(names, read_batch(folder), strict=True))
    state = steps.init(jax.tree.map(lambda a: jnp.array(a, copy=True), stored.params))
    done = [0]

    def step() -> float:
        nonlocal state
        state, sums = steps.update(state, done[0], [batch])
        done[0] += 1
        return float(sums["loss"] / sums["count"])

    return step


def profile(step: Callable[[], float]) -> dict[str, float]:
    """Seconds by kind of operation, summed over threads, of one update."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            step()
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        with gzip.open(path, "rt") as file:
            events = json.load(file)["traceEvents"]
    found: dict[str, float] = {}
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            name = event["name"]
            found[name] = found.get(name, 0.0) + event["dur"] / 1e6
    return found


PEERS = {"bart_hk": our_step, "torch": torch_step, "flax": flax_step}
PACKAGES = {
    "bart_hk": ("bart_hk", "jax"),
    "torch": ("transformers", "torch"),
    "flax": ("transformers", "flax", "jax"),
}


def main(name: str, folder: Path, threads: int, dropout: float) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if name == "make":
        make(folder)
        return
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    step = PEERS[name](folder, dropout)
    versions = {p: importlib.metadata.version(p) for p in PACKAGES[name]}
    answers.write(json.dumps({"versions": versions}) + "\n")
    for line in sys.stdin:
        if line.strip() == "profile":
            answers.write(json.dumps({"profile": profile(step)}) + "\n")
            continue
        begun = time.perf_counter()
        loss = step()
        answers.write(json.dumps({"loss": loss, "seconds": time.perf_counter() - begun}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
