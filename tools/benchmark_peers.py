"""The peers that `benchmark.py` measures, each in a process of its own.

They live in different environments, so nothing outside the standard library is imported before a
peer asks for it.

`python tools/benchmark_peers.py PEER FOLDER THREADS` reads one JSON request a line and answers each
with one line. FOLDER holds the models and the
inputs that `benchmark.py` prepared. All peers do the same work: the same weights and ids, a fixed
number of decoded tokens, float32 unless their name says otherwise.

Shapes: B batch, S source length, T decoded tokens, W beams, D width, N sentences of the stream.
"""

import functools
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmark_models import BOS, EOS, PAD, ct2_tokens

DECODED = 64  # <s>, 62 chosen tokens, </s>
BEAM = 4
ROWS = 8
_LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"
STREAM_BATCH = 8  # rows a batch, where a peer leaves that to its caller


class Peer:
    """One implementation: `encode() ... predict()` do a job once and return what it computed."""

    # Models are opened when the first job wants them.

    packages: tuple[str, ...] = ()
    compiled: dict[str, int] = {}  # functions compiled so far, and how often; of bart_hk alone
    tracing = compiling = 0.0  # seconds that went into that; or into reading from a cache

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.np = np
        self.folder = folder
        inputs = json.loads((folder / "inputs.json").read_text())
        self.sources = np.asarray(inputs["source"], np.int32)  # [32, S]
        self.source = self.sources[:ROWS]  # [B, S]
        self.stream: list[list[int]] = inputs["stream"]
        self.longest = max(map(len, self.stream))

    def search(self, rows: int, beams: int, model: str = "generation") -> Any:
        """The ids of all hypotheses, int32 [B, W, T], of the first sources."""
        raise NotImplementedError

    def greedy(self) -> Any:
        return self.search(ROWS, 1)

    def beam(self) -> Any:
        return self.search(ROWS, BEAM)

    def beam_of_one(self) -> Any:
        return self.search(1, BEAM)

    def greedy_of_many(self) -> Any:
        return self.search(4 * ROWS, 1)

    def large(self) -> Any:
        return self.search(ROWS, 1, "large-generation")

    def padded(self, rows: list[list[int]], length: int | None = None) -> Any:
        """Rows as int32 [B, S], padded on the right."""
        length = length or max(map(len, rows))
        return self.np.asarray([row + [PAD] * (length - len(row)) for row in rows], self.np.int32)

    def stream_batches(self) -> Iterator[list[list[int]]]:
        """The stream as it comes, `STREAM_BATCH` sentences at a time."""
        for start in range(0, len(self.stream), STREAM_BATCH):
            yield self.stream[start : start + STREAM_BATCH]

    def joined(self, batches: list[Any], lengths: list[int]) -> Any:
        """Features of the real tokens of all batches, [tokens, D] (a row of it in every 16)."""
        rows = [row for batch in batches for row in batch]
        real = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        return self.np.concatenate(real)[::16]


class Torch(Peer):
    """Hugging Face transformers on torch, in inference mode, with its default (fused) attention."""

    packages = ("transformers", "torch")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch
        import transformers

        threads = int(os.environ["OMP_NUM_THREADS"])
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.ids = torch.from_numpy(self.sources).long()
        self.transformers = transformers

    @functools.cached_property
    def classifier(self) -> Any:
        kind = self.transformers.BartForSequenceClassification
        return kind.from_pretrained(self.folder / "classification").eval()

    @functools.cache  # noqa: B019
    def generator(self, model: str) -> Any:
        kind = self.transformers.BartForConditionalGeneration
        return kind.from_pretrained(self.folder / model).eval()

    def encode(self) -> Any:
        return self.generator("generation").model.encoder(self.ids[:ROWS]).last_hidden_state.numpy()

    def search(self, rows: int, beams: int, model: str = "generation") -> Any:
        ids = self.generator(model).generate(
            self.ids[:rows],
            attention_mask=self.torch.ones_like(self.ids[:rows]),
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            min_new_tokens=DECODED,
            max_new_tokens=DECODED,
        )
        return ids.numpy()[:, 1:].reshape(rows, beams, DECODED)

    def _over_the_stream(self, run: Callable[[Any, Any], Any]) -> list[Any]:
        results = []
        for rows in self.stream_batches():
            ids = self.torch.from_numpy(self.padded(rows)).long()
            results.append(run(ids, (ids != PAD).long()).numpy())
        return results

    def extract_features(self) -> Any:
        def run(ids: Any, mask: Any) -> Any:
            return self.classifier.model(ids, mask).last_hidden_state

        return self.joined(self._over_the_stream(run), list(map(len, self.stream)))

    def predict(self) -> Any:
        def run(ids: Any, mask: Any) -> Any:
            return self.torch.log_softmax(self.classifier(ids, mask).logits, dim=-1)

        return self.np.concatenate(self._over_the_stream(run))


class Flax(Peer):
    """Hugging Face transformers on Flax, every function under `jax.jit`, or `generate` would trace
    anew at each call. The stream is padded to its longest sentence, so one shape is compiled."""

    packages = ("transformers", "flax", "jax")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import jax
        import transformers

        self.jax = jax
        self.transformers = transformers
        self._extract = jax.jit(self._features)
        self._predict = jax.jit(self._log_probabilities)

    @functools.cached_property
    def generator(self) -> Any:
        kind = self.transformers.FlaxBartForConditionalGeneration
        return kind.from_pretrained(self.folder / "generation", from_pt=True)

    @functools.cached_property
    def classifier(self) -> Any:
        kind = self.transformers.FlaxBartForSequenceClassification
        return kind.from_pretrained(self.folder / "classification", from_pt=True)

    @functools.cached_property
    def _encode(self) -> Any:
        return self.jax.jit(
            lambda params, ids, mask: self.generator.encode(ids, mask, params=params)[0]
        )

    def encode(self) -> Any:
        mask = self.np.ones_like(self.source)
        return self.np.asarray(self._encode(self.generator.params, self.source, mask))

    @functools.cache  # noqa: B019
    def _generator(self, beams: int) -> Any:
        def generate(params: Any, ids: Any, mask: Any) -> Any:
            return self.generator.generate(
                ids,
                attention_mask=mask,
                params=params,
                num_beams=beams,
                num_return_sequences=beams,
                do_sample=False,
                min_length=DECODED + 1,  # the decoder's start token counts here
                max_length=DECODED + 1,
                forced_bos_token_id=BOS,
                forced_eos_token_id=EOS,
            ).sequences

        return self.jax.jit(generate)

    def search(self, rows: int, beams: int, model: str = "generation") -> Any:
        source = self.sources[:rows]
        mask = self.np.ones_like(source)
        ids = self.np.asarray(self._generator(beams)(self.generator.params, source, mask))
        return ids[:, 1:].reshape(rows, beams, DECODED)

    def _features(self, params: Any, ids: Any) -> Any:
        outputs = self.classifier(
            ids, self._mask(ids), params=params, output_hidden_states=True, return_dict=True
        )
        return outputs.decoder_hidden_states[-1]

    def _log_probabilities(self, params: Any, ids: Any) -> Any:
        logits = self.classifier(ids, self._mask(ids), params=params, return_dict=True).logits
        return self.jax.nn.log_softmax(logits)

    def _mask(self, ids: Any) -> Any:
        return (ids != PAD).astype("int32")

    def _over_the_stream(self, run: Any) -> list[Any]:
        results = []
        for rows in self.stream_batches():
            ids = self.padded(rows + [[EOS]] * (STREAM_BATCH - len(rows)), self.longest)
            results.append(self.np.asarray(run(self.classifier.params, ids))[: len(rows)])
        return results

    def extract_features(self) -> Any:
        return self.joined(self._over_the_stream(self._extract), list(map(len, self.stream)))

    def predict(self) -> Any:
        return self.np.concatenate(self._over_the_stream(self._predict))


class CTranslate2(Peer):
    """CTranslate2's own kernels. It decodes only."""

    packages = ("ctranslate2",)
    compute_type = "float32"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import ctranslate2

        self.ctranslate2 = ctranslate2
        self.tokens = ct2_tokens()
        self.index = {token: i for i, token in enumerate(self.tokens)}
        self.rows = [[self.tokens[i] for i in row] for row in self.sources]

    @functools.cache  # noqa: B019
    def translator(self, model: str) -> Any:
        return self.ctranslate2.Translator(
            str(self.folder / model),
            compute_type=self.compute_type,
            inter_threads=1,
            intra_threads=int(os.environ["OMP_NUM_THREADS"]),
        )

    def search(self, rows: int, beams: int, model: str = "generation") -> Any:
        # It cannot force the final </s>, so it is spared that step.
        results = self.translator(f"{model}-ctranslate2").translate_batch(
            self.rows[:rows],
            target_prefix=[[self.tokens[BOS]]] * rows,
            beam_size=beams,
            num_hypotheses=beams,
            min_decoding_length=DECODED - 1,
            max_decoding_length=DECODED - 1,
            max_input_length=0,
        )
        ids = [[[self.index[t] for t in h] + [EOS] for h in r.hypotheses] for r in results]
        return self.np.asarray(ids, self.np.int32)


class CTranslate2Int8(CTranslate2):
    """The same with weights and activations of eight bits."""

    compute_type = "int8"


class Fairseq(Peer):
    """The real fairseq, which reads transformers' weights under its own names."""

    packages = ("fairseq-fixed", "torch")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.set_num_interop_threads(1)
        torch.set_grad_enabled(False)
        self.torch = torch

    @functools.cache  # noqa: B019
    def model(self, name: str) -> tuple[Any, Any]:
        """The model and its dictionary."""
        import argparse
        import types

        from fairseq.data import Dictionary
        from fairseq.models.bart import BARTModel
        from fairseq.models.bart.model import bart_large_architecture
        from safetensors.torch import load_file

        config = json.loads((self.folder / name / "config.json").read_text())
        args = argparse.Namespace(task="denoising", max_source_positions=1024)
        args.max_target_positions = 1024
        args.encoder_embed_dim = args.decoder_embed_dim = config["d_model"]
        for side in ("encoder", "decoder"):
            for theirs, ours in (("layers", "layers"), ("attention_heads", "attention_heads")):
                setattr(args, f"{side}_{theirs}", config[f"{side}_{ours}"])
            setattr(args, f"{side}_ffn_embed_dim", config[f"{side}_ffn_dim"])
        bart_large_architecture(args)
        dictionary = Dictionary()
        for i in range(len(dictionary), config["vocab_size"]):
            dictionary.add_symbol(str(i))
        task = types.SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
        model = BARTModel.build_model(args, task).eval()
        tensors = load_file(self.folder / name / "model.safetensors")
        state = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
        shared = state.pop("shared.weight")
        state.pop("final_logits_bias", None)
        for place in ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection"):
            state[f"{place}.weight"] = shared
        missing = model.load_state_dict(state, strict=False)
        unknown = [key for key in missing.unexpected_keys if key != "lm_head.weight"]
        if unknown or [key for key in missing.missing_keys if not key.endswith("version")]:
            raise ValueError(f"fairseq's names differ: {missing}")
        return model, dictionary

    def search(self, rows: int, beams: int, model: str = "generation") -> Any:
        from fairseq.sequence_generator import SequenceGenerator

        network, dictionary = self.model(model)
        for module in network.modules():  # a beam search leaves it behind, for greedy ones, too
            if hasattr(module, "set_beam_size"):
                module.set_beam_size(beams)
        generator = SequenceGenerator(
            [network],
            dictionary,
            beam_size=beams,
            max_len_a=0,
            max_len_b=DECODED - 1,  # does not count the final </s>
            min_len=DECODED - 1,
        )
        source = self.torch.from_numpy(self.sources[:rows]).long()
        lengths = self.torch.full((rows,), source.shape[1])
        found = generator.generate(
            [network],
            {"net_input": {"src_tokens": source, "src_lengths": lengths}},
            prefix_tokens=self.torch.full((rows, 1), BOS),
        )
        return self.np.asarray([[h["tokens"].tolist() for h in row] for row in found], "int32")


class BartHK(Peer):
    """This project, as its users call it: lists of ids in, NumPy arrays out, its own batches."""

    packages = ("bart_hk", "dm-haiku", "jax")
    dtype = "float32"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.compiled: dict[str, int] = {}
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._count)

        import bart_hk

        self.bart_hk = bart_hk
        self.rows = [self.np.asarray(row, self.np.int32) for row in self.stream]
        self.jax = jax

    @functools.cache  # noqa: B019
    def generator(self, model: str) -> Any:
        return self.bart_hk.load(self.folder / model, dtype=self.dtype)

    @functools.cached_property
    def classifier(self) -> Any:
        return self.bart_hk.load(self.folder / "classification", dtype=self.dtype)

    def _count(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event in ("/jax/core/compile/jaxpr_trace_duration", _LOWERING):
            self.tracing += duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            self.compiling += duration_secs
            name = str(details.get("fun_name", "?"))
            self.compiled[name] = self.compiled.get(name, 0) + 1

    @functools.cache  # noqa: B019
    def _encoder(self, model: str) -> Any:
        return self.jax.jit(self.generator(model).model.encode)

    def encode(self, rows: int = ROWS, model: str = "generation") -> Any:
        params = self.generator(model).params
        return self.np.asarray(self._encoder(model)(params, self.sources[:rows]).encoder_out)

    def encode_greedy(self) -> Any:
        return self.encode()

    def encode_beam(self) -> Any:
        return self.encode()

    def encode_beam_of_one(self) -> Any:
        return self.encode(1)

    def encode_greedy_of_many(self) -> Any:
        return self.encode(4 * ROWS)

    def encode_large(self) -> Any:
        return self.encode(model="large-generation")

    def search(self, rows: int, beams: int, model: str = "generation") -> Any:
        found = self.generator(model).generate(
            list(self.sources[:rows]),
            beam=beams,
            min_len=DECODED - 1,  # fairseq's lengths do not count the final </s>
            max_len_b=DECODED - 1,
            attention=False,
        )
        return self.np.stack([[hypothesis["tokens"] for hypothesis in row] for row in found])

    def extract_features(self) -> Any:
        features = self.classifier.extract_features(self.rows)
        return self.joined([features], list(map(len, self.rows)))

    def predict(self) -> Any:
        return self.classifier.predict("classification_head", self.rows)

    def first(self) -> Any:
        """What a new process is asked first: features of a sentence, and a search."""
        self.generator("generation").extract_features(self.rows[0])
        return self.greedy()


class BartHKBfloat16(BartHK):
    """The same with weights and caches of bfloat16."""

    dtype = "bfloat16"


class BartHKOnXLA(BartHK):
    """The same on XLA's operations alone, without `bart_hk.kernels`."""

    def __init__(self, folder: Path) -> None:
        os.environ["BART_HK_KERNELS"] = "0"
        super().__init__(folder)


class BartHKBfloat16OnXLA(BartHKOnXLA, BartHKBfloat16):
    """Both."""


PEERS: dict[str, type[Peer]] = {
    "bart_hk": BartHK,
    "bart_hk-bfloat16": BartHKBfloat16,
    "ctranslate2": CTranslate2,
    "ctranslate2-int8": CTranslate2Int8,
    "flax": Flax,
    "torch": Torch,
    "fairseq": Fairseq,
    "bart_hk-xla": BartHKOnXLA,
    "bart_hk-bfloat16-xla": BartHKBfloat16OnXLA,
}


def serve(peer: Peer, folder: Path, answer: Callable[[dict[str, Any]], None]) -> None:
    """Runs the jobs asked for, one a line: {"job": NAME, "keep": FILE or null}."""
    versions = {name: importlib.metadata.version(name) for name in peer.packages}
    answer({"versions": versions, "compiled": peer.compiled})
    for line in sys.stdin:
        request = json.loads(line)
        job = getattr(peer, request["job"])
        start = time.perf_counter()
        result = job()
        seconds = time.perf_counter() - start
        if request["keep"]:
            peer.np.save(folder / request["keep"], result)
        spent = {"tracing": peer.tracing, "compiling": peer.compiling}
        answer({"seconds": seconds, "compiled": peer.compiled, **spent})


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it may use cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Answers go to the real standard output; what a library prints goes to the error stream.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(PEERS[name](folder), folder, lambda reply: print(json.dumps(reply), file=channel))


if __name__ == "__main__":
    main()
