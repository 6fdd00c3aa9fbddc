"""Writing a text from a text: summarisation, translation, dialogue. fairseq's `translation`.

Shapes: B rows, S source tokens, T target tokens.

What surrounds the texts is the same in training and when the model is used, since it is stored with
the model: `prepend_bos` decides whether both sides begin with `<s>`, as in BART's pretraining and
the hub, or not, as `fairseq-preprocess` leaves them:

    prepend_bos     source        decoder reads    decoder writes    generation begins with
    true            <s> A </s>    </s> <s> B       <s> B </s>        <s>
    false           A </s>        </s> B           B </s>            anything
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.config import BARTConfig, Flavour
from bart_hk.data.batching import bucket, pad_rows
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore
from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.model import BART
from bart_hk.tasks import Batch, TaskKind, files, losses
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.pairs import READING, Pairs, PairsConfig, Splits, check_symbols, read_splits
from bart_hk.tasks.text_metrics import ROUGE, TextMetrics, caveats, settings
from bart_hk.tasks.writing import TextWriting, Tree
from bart_hk.text import TextEncoder

_log = logging.getLogger(__name__)

# Targets have fewer lengths than sources: every pair of both is a program.
_TARGET_BUCKETS = (8, 16, 32, 64, 128, 256, 512)


@dataclass
class TranslationConfig(PairsConfig):
    """Where the texts are, how long they may be, and how the model is judged."""

    _name: str = "translation"
    prepend_bos: bool = True  # see the top of bart_hk/tasks/translation.py
    max_source_positions: int = 1024
    max_target_positions: int = 1024
    # What is longer: cut its end, but keep </s>; or leave out the row. Neither: an error.
    truncate_source: bool = False
    truncate_target: bool = False
    skip_invalid_size_inputs: bool = False
    # Texts written for the validation rows: sacrebleu's BLEU, rouge-score's ROUGE.
    eval_bleu: bool = False
    eval_rouge: bool = False
    eval_exact_match: bool = False  # how many are a reference to the letter
    eval_rows: int = 0  # so many of them alone, evenly spread; 0: all
    # How: {beam: 4, max_len_b: 60, ...}. Stored with the model, as its defaults.
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)


class EncodedPairs:
    """The rows of a split as ids."""

    def __init__(
        self,
        pairs: Pairs,
        rows: np.ndarray,
        sources: list[np.ndarray],
        targets: list[np.ndarray],
        config: BARTConfig,
    ) -> None:
        self.pairs, self.sources, self.targets = pairs, sources, targets
        self.rows = rows  # of `pairs`
        longest = [max(len(a), len(b)) for a, b in zip(sources, targets, strict=True)]
        self.lengths = np.array(longest, np.int64)
        self._pad, self._start = config.pad_token_id, config.decoder_start_token_id

    def batch(self, rows: np.ndarray, length: int, count: int) -> Batch:
        """src_tokens int32 [B, S], prev_output_tokens and target int32 [B, T]; S is `length`."""
        targets = [self.targets[i] for i in rows]
        buckets = [b for b in _TARGET_BUCKETS if b < length] + [length]
        target_length = bucket(max(map(len, targets)), buckets)
        shifted = [np.concatenate([[self._start], row[:-1]]) for row in targets]
        return {
            "src_tokens": pad_rows([self.sources[i] for i in rows], self._pad, length, count),
            "prev_output_tokens": pad_rows(shifted, self._pad, target_length, count),
            "target": pad_rows(targets, self._pad, target_length, count),
        }

    def where(self, rows: Sequence[int]) -> str:
        """File and lines of some rows."""
        lines = ", ".join(str(self.pairs.lines[self.rows[i]]) for i in rows)
        return f"{self.pairs.name}, lines {lines}"


class Translation(TextWriting):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: a file or an option is not as it should be.
    """

    flavours: tuple[str, ...] = (Flavour.encoder_decoder,)
    separate_sources = True
    more_metrics: tuple[str, ...] = ("task.eval_bleu", "task.eval_rouge", "task.eval_exact_match")
    train: EncodedPairs
    valid: EncodedPairs | None

    def __init__(self, config: TranslationConfig, criterion: CrossEntropyConfig) -> None:
        self.config, self.criterion = config, criterion
        losses.check(criterion)
        self._names = tuple(name for name in ("bleu", "rouge") if getattr(config, f"eval_{name}"))
        self._text_metrics()  # are installed
        self._options = _options(config)
        self._splits = self._read()
        self.validates = self._splits.valid is not None
        if self._splits.binarised:
            self.tokenizer_folder = config.data
        rouge = ROUGE if config.eval_rouge else ()
        bleu = ("bleu",) if config.eval_bleu else ()
        exact = ("exact_match",) if config.eval_exact_match else ()
        self.metric_names = ("nll_loss", "ppl", "accuracy", *exact, *bleu, *rouge)
        if (asked := (*self._names, *exact)) and not self.validates:
            raise DataError(
                f"task.eval_{asked[0]}=true needs texts to compare with; set task.valid"
            )
        self._generator: tuple[BART, Generator] | None = None
        self._said: set[str] = set()

    def _read(self) -> Splits:
        return read_splits(self.config)

    def _text_metrics(self) -> TextMetrics:
        try:
            return TextMetrics(self._names)
        except ImportError as error:
            raise DataError(f"task.eval_{self._names[0]}=true: {error}") from None

    def fingerprint(self) -> dict[str, Any]:
        """The files' digests."""
        found = {"train": files.digest(*self._splits.train.files)}
        if self._splits.valid is not None:
            found["valid"] = files.digest(*self._splits.valid.files)
        return found

    def labelled_files(self) -> list[tuple[Path, ...]]:
        """The validation table, or sources and targets; of stores their .bin."""
        valid = self._splits.valid
        if valid is None or not valid.files:
            return []
        stores = tuple(path for path in valid.files if path.suffix == ".bin")
        return [stores or tuple(valid.files)]

    def texts(self) -> Iterable[str]:
        """Sources and targets to train on."""
        return self._splits.train.texts()

    def model_config(self, config: BARTConfig, encoder: TextEncoder) -> BARTConfig:
        """Generation is forced to begin as targets do."""
        first = config.bos_token_id if self.config.prepend_bos else None
        return config.replace(forced_bos_token_id=first)

    def extras(self) -> dict[str, Any]:
        """How long sources are at most, how texts are surrounded, how the model generates, and the
        columns of a table."""
        columns = self._splits.train.columns
        return {
            "max_positions": self.config.max_source_positions,
            "prepend_bos": self.config.prepend_bos,
            "generation": dict(self.config.generation),
            **({READING: dict(columns)} if columns else {}),
        }

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """Encodes both splits; says how many rows were cut or left out.

        Raises:
            DataError: rows are too long, or ids are not of the model's vocabulary.
        """
        self._encoder = encoder
        self.train = self._encode(self._splits.train, encoder, config)
        valid = self._splits.valid
        self.valid = None if valid is None else self._encode(valid, encoder, config)

    def _begin(self, ids: np.ndarray, config: BARTConfig) -> np.ndarray:
        """A row without its end."""
        bos = [config.bos_token_id] if self.config.prepend_bos else []
        return np.array([*bos, *ids], np.int32)

    def _encode(self, pairs: Pairs, encoder: TextEncoder, config: BARTConfig) -> EncodedPairs:
        asked = self.config
        sides: list[list[np.ndarray]] = []
        fits = np.ones(len(pairs), bool)
        for side, texts, limit, cuts in (
            ("source", pairs.sources, config.max_source_positions, asked.truncate_source),
            ("target", pairs.targets, config.max_target_positions, asked.truncate_target),
        ):
            most = min(getattr(asked, f"max_{side}_positions"), limit)
            ends = self._end(side, config)
            reader = encoder.for_sources if side == "source" else encoder
            rows = [self._begin(ids, config) for ids in _ids(texts, reader, config)]
            room = most - len(ends)
            long = np.flatnonzero([len(row) > room for row in rows])
            if len(long) and cuts:
                _log.info("%s: %d %ss cut to %d tokens", pairs.name, len(long), side, most)
            elif len(long) and not asked.skip_invalid_size_inputs:
                first = int(long[0])
                raise DataError(
                    f"{pairs.where(first)}: its {side} has {len(rows[first]) + len(ends)} tokens, "
                    f"and {most} is the limit (of {len(long)} of {len(rows)} rows); set "
                    f"task.truncate_{side}=true or task.skip_invalid_size_inputs=true"
                )
            else:
                fits[long] = False
            sides.append([np.concatenate([row[:room], ends]).astype(np.int32) for row in rows])
        chosen = np.flatnonzero(fits)
        if len(chosen) < len(pairs):
            left = len(pairs) - len(chosen)
            _log.info("%s: %d of %d rows left out, too long", pairs.name, left, len(pairs))
        if not len(chosen):
            raise DataError(f"{pairs.name}: every row is too long; set task.truncate_source=true")
        sources, targets = ([side[i] for i in chosen] for side in sides)
        return EncodedPairs(pairs, chosen, sources, targets, config)

    def _end(self, side: str, config: BARTConfig) -> list[int]:
        """What ends a row, however much of it is cut."""
        return [config.eos_token_id]

    def written(self, bart: BART, params: Tree) -> dict[str, float]:
        """Exact match, BLEU and ROUGE, if asked for."""
        if not self._names and not self.config.eval_exact_match:
            return {}
        metrics, exact = self._text_metrics(), []
        hypotheses, of_rows = self.hypotheses(bart, params)
        self._say_what_they_are(hypotheses, of_rows)
        for hypothesis, references in zip(hypotheses, of_rows, strict=True):
            metrics.add(hypothesis, *references)
            exact.append(hypothesis in references)
        share = {"exact_match": 100 * sum(exact) / len(exact)}
        return (share if self.config.eval_exact_match else {}) | metrics.results()

    def _say_what_they_are(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Logs the settings of the metrics, once, and each reason why they mean little."""
        said = settings(self._names, [len(texts) for texts in references])
        found = caveats(hypotheses, [texts[0] for texts in references], self._names)
        for level, lines in ((logging.INFO, said), (logging.WARNING, found)):
            for line in lines:
                if line not in self._said:
                    self._said.add(line)
                    _log.log(level, line)

    def hypotheses(self, bart: BART, params: Tree) -> tuple[list[str], list[Sequence[str]]]:
        """What the model writes for the validation rows, and their references."""
        assert self.valid is not None  # whoever asks for metrics has it
        if self._generator is None or self._generator[0] is not bart:
            self._generator = bart, Generator(bart)
        valid, there = self.valid, len(self.valid.sources)
        # Files are often in the order of their texts' lengths.
        chosen = np.linspace(0, there - 1, min(self.config.eval_rows or there, there)).astype(int)
        found = self._generator[1].generate(
            params["model"], [valid.sources[i] for i in chosen], self._options, attention=False
        )
        texts = [self._text(best["tokens"], bart.config) for best, *_ in found]
        stored = valid.pairs.targets
        if isinstance(stored, TokenStore):
            references: list[Sequence[str]] = [
                [self._text(valid.targets[i], bart.config)] for i in chosen
            ]
        else:
            references = [stored[i] for i in valid.rows[chosen]]
        return texts, references

    def _text(self, ids: Iterable[int], config: BARTConfig) -> str:
        special = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
        return self._encoder.decode([int(i) for i in ids if i not in special])


KIND = TaskKind(
    TranslationConfig(),
    (
        next(c for c in losses.SEQUENCE_CRITERIA if c._name.startswith("label_smoothed")),
        *(c for c in losses.SEQUENCE_CRITERIA if not c._name.startswith("label_smoothed")),
    ),
    Translation,
)


def _ids(texts: Any, encoder: TextEncoder, config: BARTConfig) -> list[np.ndarray]:
    """The ids of texts, of first references, or of a store's rows without their `</s>`."""
    if isinstance(texts, TokenStore):
        check_symbols(texts, encoder)
        rows = [texts[i] for i in range(len(texts))]
        return [r[:-1] if len(r) and r[-1] == config.eos_token_id else r for r in rows]
    plain = [text if isinstance(text, str) else text[0] for text in texts]
    return [np.array(ids, np.int32) for ids in encoder.encode_batch(plain)]


def _options(config: TranslationConfig) -> GenerationOptions:
    if config.eval_rows < 0:
        raise DataError(f"task.eval_rows={config.eval_rows} must not be negative")
    if config.eval_rows and not (config.eval_bleu or config.eval_rouge or config.eval_exact_match):
        raise DataError("task.eval_rows needs task.eval_bleu, eval_rouge or eval_exact_match=true")
    try:
        return GenerationOptions.from_kwargs(**dict(config.generation))
    except (TypeError, ValueError) as error:
        raise DataError(f"task.generation: {error}") from None
