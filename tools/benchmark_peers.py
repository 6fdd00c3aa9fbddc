"""The peers that `benchmark.py` measures, each in a process of its own.

They live in different environments, so nothing outside the standard library is imported before a
peer asks for it.

`python tools/benchmark_peers.py PEER FOLDER THREADS` reads one JSON request a line and answers each
with one line; with `make` as PEER it makes the models instead. FOLDER holds the models and the
inputs that `benchmark.py` prepared. All peers do the same work: the same weights and ids, a fixed
number of decoded tokens, float32.

Shapes: B batch, S source length, T decoded tokens, W beams, D width, N sentences of the stream.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BOS, PAD, EOS = 0, 1, 2
VOCABULARY = 50265
DECODED = 64  # <s>, 62 chosen tokens, </s>
BEAM = 4
STREAM_BATCH = 8  # rows a batch, where a peer leaves that to its caller


class Peer:
    """One implementation: `encode() ... predict()` do a job once and return what it computed."""

    packages: tuple[str, ...] = ()
    compiled: dict[str, int] = {}  # functions compiled so far, and how often; of bart_hk alone

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.np = np
        self.folder = folder
        inputs = json.loads((folder / "inputs.json").read_text())
        self.source = np.asarray(inputs["source"], np.int32)  # [B, S]
        self.stream: list[list[int]] = inputs["stream"]
        self.longest = max(map(len, self.stream))

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
        self.ids = torch.from_numpy(self.source).long()
        self.classifier = transformers.BartForSequenceClassification.from_pretrained(
            folder / "classification"
        ).eval()
        self.generator = transformers.BartForConditionalGeneration.from_pretrained(
            folder / "generation"
        ).eval()

    def encode(self) -> Any:
        return self.generator.model.encoder(self.ids).last_hidden_state.numpy()

    def _generate(self, beams: int) -> Any:
        ids = self.generator.generate(
            self.ids,
            attention_mask=self.torch.ones_like(self.ids),
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            min_new_tokens=DECODED,
            max_new_tokens=DECODED,
        )
        return ids.numpy()[:, 1:].reshape(len(self.source), beams, DECODED)

    def greedy(self) -> Any:
        return self._generate(1)

    def beam(self) -> Any:
        return self._generate(BEAM)

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
        self.generator = transformers.FlaxBartForConditionalGeneration.from_pretrained(
            folder / "generation", from_pt=True
        )
        self.classifier = transformers.FlaxBartForSequenceClassification.from_pretrained(
            folder / "classification", from_pt=True
        )
        self.mask = self.np.ones_like(self.source)
        self._encode = jax.jit(
            lambda params, ids, mask: self.generator.encode(ids, mask, params=params)[0]
        )
        self._greedy = self._generator(1)
        self._beam = self._generator(BEAM)
        self._extract = jax.jit(self._features)
        self._predict = jax.jit(self._log_probabilities)

    def encode(self) -> Any:
        return self.np.asarray(self._encode(self.generator.params, self.source, self.mask))

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

    def _ids(self, generate: Any, beams: int) -> Any:
        ids = self.np.asarray(generate(self.generator.params, self.source, self.mask))
        return ids[:, 1:].reshape(len(self.source), beams, DECODED)

    def greedy(self) -> Any:
        return self._ids(self._greedy, 1)

    def beam(self) -> Any:
        return self._ids(self._beam, BEAM)

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
    """CTranslate2's own kernels, float32. It decodes only."""

    packages = ("ctranslate2",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import ctranslate2

        self.translator = ctranslate2.Translator(
            str(folder / "ctranslate2"),
            compute_type="float32",
            inter_threads=1,
            intra_threads=int(os.environ["OMP_NUM_THREADS"]),
        )
        self.tokens = ct2_tokens()
        self.index = {token: i for i, token in enumerate(self.tokens)}
        self.rows = [[self.tokens[i] for i in row] for row in self.source]

    def _generate(self, beams: int) -> Any:
        # It cannot force the final </s>, so it is spared that step.
        results = self.translator.translate_batch(
            self.rows,
            target_prefix=[[self.tokens[BOS]]] * len(self.rows),
            beam_size=beams,
            num_hypotheses=beams,
            min_decoding_length=DECODED - 1,
            max_decoding_length=DECODED - 1,
            max_input_length=0,
        )
        ids = [[[self.index[t] for t in h] + [EOS] for h in r.hypotheses] for r in results]
        return self.np.asarray(ids, self.np.int32)

    def greedy(self) -> Any:
        return self._generate(1)

    def beam(self) -> Any:
        return self._generate(BEAM)


def ct2_tokens() -> list[str]:
    """CTranslate2 wants tokens by name: one for every id."""
    return ["<s>", "<pad>", "</s>", "<unk>", *(str(i) for i in range(4, VOCABULARY))]


def make_models(folder: Path) -> None:
    """Random bart.base weights, with and without a classification head, in Hugging Face's and in
    CTranslate2's format."""
    import torch
    import transformers
    from ctranslate2.converters.transformers import BartLoader

    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=768,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
        num_labels=2,
        forced_bos_token_id=BOS,
        forced_eos_token_id=EOS,
    )
    classifier = transformers.BartForSequenceClassification(config)
    # Plain random weights repeat one token for ever, whatever the source. With these, every token
    # depends on its position and on the source, so a wrong cache or mask shows in the ids.
    with torch.no_grad():
        for name, weights in classifier.named_parameters():
            if "embed_positions" in name:
                weights *= 20
            elif "encoder_attn" in name and name.endswith("proj.weight"):
                weights *= 3
    classifier.save_pretrained(folder / "classification")
    generator = transformers.BartForConditionalGeneration(config)
    generator.model = classifier.model
    generator.tie_weights()
    generator.save_pretrained(folder / "generation")

    # What CTranslate2's converter does, less the tokenizer that it would read the tokens from.
    config.normalize_before, config.normalize_embedding = False, True
    spec = BartLoader().get_model_spec(generator.eval())
    spec.register_source_vocabulary(ct2_tokens())
    spec.register_target_vocabulary(ct2_tokens())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for name, token in {**names, "decoder_start_token": "</s>"}.items():
        setattr(spec.config, name, token)
    spec.validate()
    spec.optimize()
    (folder / "ctranslate2").mkdir(exist_ok=True)
    spec.save(str(folder / "ctranslate2"))


class BartHK(Peer):
    """This project, as its users call it: lists of ids in, NumPy arrays out, its own batches."""

    packages = ("bart_hk", "dm-haiku", "jax")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.compiled: dict[str, int] = {}
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._count)

        import bart_hk

        self.generator = bart_hk.load(folder / "generation")
        self.classifier = bart_hk.load(folder / "classification")
        self.rows = [self.np.asarray(row, self.np.int32) for row in self.stream]
        self.params = self.generator.params
        self._encode = jax.jit(self.generator.model.encode)

    def _count(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            name = str(details.get("fun_name", "?"))
            self.compiled[name] = self.compiled.get(name, 0) + 1

    def encode(self) -> Any:
        return self.np.asarray(self._encode(self.params, self.source).encoder_out)

    def _generate(self, beams: int) -> Any:
        # fairseq's lengths do not count the final </s>.
        found = self.generator.generate(
            list(self.source),
            beam=beams,
            min_len=DECODED - 1,
            max_len_b=DECODED - 1,
            attention=False,
        )
        return self.np.stack([[hypothesis["tokens"] for hypothesis in row] for row in found])

    def greedy(self) -> Any:
        return self._generate(1)

    def beam(self) -> Any:
        return self._generate(BEAM)

    def extract_features(self) -> Any:
        features = self.classifier.extract_features(self.rows)
        return self.joined([features], list(map(len, self.rows)))

    def predict(self) -> Any:
        return self.classifier.predict("classification_head", self.rows)

    def first(self) -> Any:
        """What a new process is asked first: features of a sentence, and a search."""
        self.classifier.extract_features(self.rows[0])
        return self.greedy()


PEERS: dict[str, type[Peer]] = {
    "bart_hk": BartHK,
    "torch": Torch,
    "flax": Flax,
    "ctranslate2": CTranslate2,
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
        answer({"seconds": seconds, "compiled": peer.compiled})


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it may use cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if name == "make":
        return make_models(folder)
    # Answers go to the real standard output; what a library prints goes to the error stream.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(PEERS[name](folder), folder, lambda reply: print(json.dumps(reply), file=channel))


if __name__ == "__main__":
    main()
