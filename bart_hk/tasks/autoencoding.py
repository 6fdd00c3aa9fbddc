"""Autoencoding: a text through a bottleneck and back. The Transformer-VAE on BART.

    The cat sat.  ->  latents [n, Z]  ->  The cat sat.

The model needs a bottleneck (`model=bart_latent`, `model.n_latent_tokens`), which any checkpoint
gets beside its own parameters. Plain copying, or with `task.noise=bart` the original of a noised
text. Latents are kept near N(0, I), so that what lies between two of them, or is drawn, can be
decoded too.

Source: Fraser Greenlee's T5-VAE, transformer-vae and t5-vae-flax. Shapes: B rows, S source tokens,
T target tokens, n latent tokens of Z numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.config import BARTConfig
from bart_hk.data.batching import LENGTH_BUCKETS, bucket, buckets_up_to, pad_rows
from bart_hk.data.documents import PACKED, TEXT, find_files
from bart_hk.data.draws import KeyedDraws
from bart_hk.data.noising import Noiser
from bart_hk.data.readers import FORMATS, DataError, read_table
from bart_hk.model import BART
from bart_hk.tasks import Batch, TaskKind, files, latent_losses, losses
from bart_hk.tasks.denoising import NoiseOptions, make_noiser, noise_config, unread_noise
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.pairs import Pairs, Splits
from bart_hk.tasks.translation import EncodedPairs, Translation, TranslationConfig
from bart_hk.tasks.writing import Tree
from bart_hk.text import TextEncoder

_VALID_EPOCH = 0  # of the noise that is validated on: always the same
_COLUMNS = ("text", "sentence", "en")
REGULARIZERS = ("mmd", "kl", "none")
SCHEDULES = ("sigmoid", "constant")


@dataclass
class AutoencodingConfig(NoiseOptions, TranslationConfig):
    """task=translation's options, with one text for both sides, and these.

    `train` and `valid` are text files with a text on every line, or tables; `data` is a folder with
    train.txt or train.tsv, and so on.
    """

    _name: str = "autoencoding"
    text_column: str | None = None  # of a table; "text", "sentence" or "en" by default
    unique: bool = True  # leave out texts that came before
    noise: str = "none"  # on what the model reads: "bart", or another preset
    seed: int = "${common.seed}"  # type: ignore[assignment]


@dataclass
class AutoencodingCriterionConfig(CrossEntropyConfig):
    """Cross-entropy of the text, and what keeps latents near N(0, I).

    The discrepancy counts as much as the mean loss of a token; the KL of a row as its tokens' loss,
    so that with weight 1 the sum is a VAE's bound.
    """

    _name: str = "autoencoding"
    regularizer: str = "mmd"  # mmd; kl, which needs model.latent_variational=true; none
    # Of exp(-|x - y|^2 / bandwidth): a number, or "d", the numbers of a latent token, or the
    # original's "d^2", with which the discrepancy is multiplied by n_latent_tokens / rows as there.
    mmd_bandwidth: str = "d"
    free_bits: float = 0.0  # nats of each number that the KL does not count
    reg_weight: float = 1.0
    # How the weight comes in: sigmoid(reg_slope * update - reg_offset), or constant.
    reg_schedule: str = "sigmoid"
    reg_slope: float = 0.0025
    reg_offset: float = 6.25


class NoisedPairs(EncodedPairs):
    """Texts as what is read, perhaps noised, and as what is written.

    A row's noise depends on the seed, the epoch and its own number alone.
    """

    def __init__(
        self, rows: EncodedPairs, noiser: Noiser | None, config: BARTConfig, seed: int
    ) -> None:
        super().__init__(rows.pairs, rows.rows, rows.sources, rows.targets, config)
        self._noiser, self._seed, self.epoch = noiser, seed, _VALID_EPOCH
        self._limit = config.max_source_positions

    def batch(self, rows: np.ndarray, length: int, count: int) -> Batch:
        """As `EncodedPairs.batch`; S is a bucket above where noise has made a source longer.

        Raises:
            DataError: noise has made a source longer than the model's positions.
        """
        made = super().batch(rows, length, count)
        if self._noiser is None:
            return made
        draws = KeyedDraws(self._seed, self.epoch, rows)
        sources = self._noiser.rows([self.sources[i] for i in rows], draws)
        most = max(map(len, sources))
        if most > self._limit:
            row = int(rows[[len(source) for source in sources].index(most)])
            raise DataError(
                f"{self.where([row])}: noise has made {most} tokens of it, and the model takes "
                f"{self._limit}; lower task.max_source_positions or task.insert"
            )
        above = [length, *(b for b in buckets_up_to(self._limit, LENGTH_BUCKETS) if b > length)]
        made["src_tokens"] = pad_rows(sources, self._pad, bucket(most, above), count)
        return made


class Autoencoding(Translation):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: a file or an option is not as it should be.
    """

    config: AutoencodingConfig
    criterion: AutoencodingCriterionConfig
    separate_sources = False
    train: NoisedPairs
    valid: NoisedPairs | None

    def __init__(self, config: AutoencodingConfig, criterion: AutoencodingCriterionConfig) -> None:
        self._noise = noise_config(config)
        if self._noise != noise_config(NoiseOptions(noise="none")) and not config.prepend_bos:
            raise DataError(
                f"task.noise={config.noise} is for texts with <s>; set task.prepend_bos=true"
            )
        self._bandwidth = _check(criterion)
        super().__init__(config, criterion)

    def _read(self) -> Splits:
        config = self.config
        for name in ("source_lang", "target_lang", "source_column", "target_column"):
            if getattr(config, name) is not None:
                raise DataError(
                    f"task.{name}={getattr(config, name)}: task=autoencoding has one text for both "
                    "sides; task.text_column names a table's"
                )
        train, valid = text_files(config)
        return Splits(read_texts(train, config), read_texts(valid, config) if valid else None)

    def unread(self) -> str | None:
        """See `unread_noise`."""
        return unread_noise(self.config)

    def texts(self) -> Iterable[str]:
        """The texts to train on."""
        return dict.fromkeys(super().texts())  # which has each of both sides

    def model_config(self, config: BARTConfig, encoder: TextEncoder) -> BARTConfig:
        """As `Translation.model_config`.

        Raises:
            DataError: the model has no bottleneck, or not the one that the regulariser needs.
        """
        if not config.n_latent_tokens:
            raise DataError(
                "task=autoencoding needs a bottleneck, and n_latent_tokens=0: set "
                "model=bart_latent, or model.n_latent_tokens and model.latent_token_size"
            )
        if self.criterion.regularizer == "kl" and not config.latent_variational:
            raise DataError(
                "criterion.regularizer=kl needs variances, and latent_variational=False: set "
                "model.latent_variational=true, or criterion.regularizer=mmd"
            )
        return super().model_config(config, encoder)

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """As `Translation.encode`."""
        super().encode(encoder, config)
        noiser = None
        if self._noise != noise_config(NoiseOptions(noise="none")):
            noiser = make_noiser(self.config, encoder, config)
        seed = self.config.seed
        self.train = NoisedPairs(self.train, noiser, config, seed)
        if self.valid is not None:
            self.valid = NoisedPairs(self.valid, noiser, config, seed)

    def begin_epoch(self, epoch: int) -> None:
        """Gives `train` the noise of an epoch, counted from 1."""
        self.train.epoch = epoch

    def loss(
        self, bart: BART, params: Tree, key: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The summed loss over target tokens and what the latents cost. Traced.

        Among the sums are `reg_loss` and `reg_weight`, means times `count`.
        """
        criterion, pad = self.criterion, bart.config.pad_token_id
        key, prior_key = jax.random.split(key)
        encoded, decoded = losses.sequence_states(bart, params["model"], key, batch)
        logits = bart.project(params["model"], decoded.features)
        loss, sums = losses.sequence_loss_of(logits, batch["target"], pad, criterion)
        assert encoded.latents is not None  # `model_config` has looked
        real = (batch["target"] != pad).any(axis=1)
        weight = jnp.float32(criterion.reg_weight)
        if criterion.reg_schedule == "sigmoid":
            slope, offset = criterion.reg_slope, criterion.reg_offset
            weight *= latent_losses.sigmoid_weight(batch["update"], slope, offset)
        if criterion.regularizer == "none":
            return loss, sums
        if criterion.regularizer == "kl":
            cost = latent_losses.kl(encoded.latents, real, criterion.free_bits)
            times = real.sum()
        else:
            drawn = encoded.latents.drawn
            cost = latent_losses.mmd_of_latents(drawn, real, prior_key, self._width(bart.config))
            if criterion.mmd_bandwidth == "d^2":
                cost *= bart.config.n_latent_tokens / jnp.maximum(real.sum(), 1)
            times = sums["count"]
        sums |= {"reg_loss": cost * sums["count"], "reg_weight": weight * sums["count"]}
        return loss + weight * cost * times, sums

    def _width(self, config: BARTConfig) -> float | None:
        if self.criterion.mmd_bandwidth == "d^2":
            return float(config.latent_token_size) ** 2
        return self._bandwidth


KIND = TaskKind(
    AutoencodingConfig(),
    (AutoencodingCriterionConfig(sentence_avg="${optimization.sentence_avg}"),),  # type: ignore[arg-type]
    Autoencoding,
)


def _check(criterion: AutoencodingCriterionConfig) -> float | None:
    """The bandwidth as a number, None where it follows from the latents.

    Raises:
        DataError: an option makes no sense.
    """
    for name, known in (("regularizer", REGULARIZERS), ("reg_schedule", SCHEDULES)):
        value = getattr(criterion, name)
        if value not in known:
            raise DataError(f"criterion.{name}={value} is not one of {', '.join(known)}")
    for name in ("free_bits", "reg_weight"):
        if getattr(criterion, name) < 0:
            value = getattr(criterion, name)
            raise DataError(f"criterion.{name}={value} must not be negative")
    if criterion.mmd_bandwidth in ("d", "d^2"):
        return None
    try:
        bandwidth = float(criterion.mmd_bandwidth)
    except ValueError:
        bandwidth = 0.0
    if not 0 < bandwidth < float("inf"):
        raise DataError(
            f"criterion.mmd_bandwidth={criterion.mmd_bandwidth} must be d, d^2 or a number above 0"
        )
    return bandwidth


def text_files(config: AutoencodingConfig) -> tuple[Path, Path | None]:
    """What to train and to validate on.

    Raises:
        DataError: nothing is given, or nothing is there.
    """
    folder = files.folder_of(config)
    if folder is None:
        if not config.train:
            raise DataError("task.train is not set; give it a .txt, .tsv, .csv or .jsonl file")
        return Path(config.train), Path(config.valid) if config.valid else None
    ends = [f"{kind}{end}" for kind in (*TEXT, *FORMATS) for end in ("", *PACKED)]
    found = [
        next((p for n in names for end in ends if (p := folder / f"{n}{end}").is_file()), None)
        for names in (("train",), files.VALID_NAMES)
    ]
    if found[0] is None:
        raise DataError(f"task.data={folder} has no train.txt, train.tsv, train.csv or train.jsonl")
    return found[0], found[1]


def read_texts(path: Path, config: AutoencodingConfig) -> Pairs:
    """One file's texts, for both sides.

    Raises:
        DataError: it is missing or malformed, has no such column, or no text.
    """
    lines: Sequence[int]
    if any(end in FORMATS for end in path.suffixes[-2:]):
        table = read_table(path)
        names = [config.text_column] if config.text_column else _COLUMNS
        column = next((name for name in names if name in table.header), config.text_column)
        if column is None:
            raise DataError(
                f"{path} has the columns {', '.join(table.header)}: name the one with the texts in "
                "task.text_column"
            )
        at = table.column(column)
        texts = [record.fields[at] for record in table.records]
        lines = [record.line for record in table.records]
    else:
        texts = [t for f in find_files([path]) for piece in f.pieces() for t in piece.lines]
        lines = range(1, len(texts) + 1)
    rows = [i for i, text in enumerate(texts) if text.strip()]
    if config.unique:
        first: dict[str, int] = {}
        for i in rows:
            first.setdefault(texts[i], i)
        rows = list(first.values())
    if not rows:
        raise DataError(f"{path} holds no text")
    chosen = [texts[i] for i in rows]
    return Pairs(str(path), (path,), chosen, [[t] for t in chosen], [lines[i] for i in rows])
