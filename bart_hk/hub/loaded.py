"""A BART in memory: its parameters on a device, its heads, its loss.

Shapes: see the glossary in `bart_hk.model.layers`.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.checkpoint.huggingface import write_model
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.checkpoint.tree import check_parameters, map_leaves
from bart_hk.compilation import use_persistent_cache
from bart_hk.config import BARTConfig
from bart_hk.generation.generator import Generator
from bart_hk.generation.scorer import Scorer
from bart_hk.hub.features import FeatureExtractor
from bart_hk.model import BART, ClassificationHead, Ensemble, Params, sentence_representation
from bart_hk.tasks import losses

logger = logging.getLogger(__name__)

_HEADS = "classification_heads"  # first part of the heads' paths in the full parameter tree


class Head:
    """A registered head: its module, its parameters on the device, its compiled function."""

    def __init__(
        self,
        module: ClassificationHead,
        params: Params,
        labels: list[str] | None,
        regression: bool = False,
        multi_label: bool = False,
    ) -> None:
        self.module, self.params, self.labels = module, params, labels
        self.regression, self.multi_label = regression, multi_label
        self.logits = jax.jit(module.apply)


class Engine(NamedTuple):
    """A network and what runs it; an ensemble's members only generate and score together."""

    bart: BART
    features: FeatureExtractor
    generator: Generator
    scorer: Scorer


def resolve_dtype(name: Any) -> np.dtype:
    dtype = jnp.dtype(name)
    if dtype not in (jnp.dtype(known) for known in ("float32", "bfloat16", "float16")):
        raise ValueError(f"dtype={name!r} is not one of float32, bfloat16, float16")
    return dtype


def resolve_device(name: Any) -> jax.Device | None:
    """A `jax.Device` from "cpu", "gpu", "cuda:1", ...; None for None."""
    if name is None or isinstance(name, jax.Device):
        return name
    platform, _, index = str(name).replace("cuda", "gpu").partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError):
        known = ", ".join(str(device) for device in jax.devices())
        raise ValueError(f"device={name!r} is not there; jax sees: {known}") from None


def placing(dtype: np.dtype, device: jax.Device | None) -> Callable[[Any], jax.Array]:
    """What puts an array on `device` in `dtype`."""
    return lambda array: jax.device_put(jnp.asarray(array).astype(dtype), device)


class LoadedBART:
    """Parameters, heads and compiled functions, on one device and in one dtype.

    Attributes:
        config: the network's `BARTConfig`.
        heads: the registered heads by name.
        extras: what else the model directory's `bart_hk.json` says, such as generation defaults.
        training: what `train` and `eval` set. It changes no result: dropout is on where a key is
            given, in `loss`.
    """

    def __init__(
        self,
        config: BARTConfig,
        params: Params,
        heads: Mapping[str, HeadFiles] | None = None,
        *,
        others: Sequence[tuple[BARTConfig, Params]] = (),
        extras: Mapping[str, Any] | None = None,
        dtype: Any = "float32",
        device: Any = None,
    ) -> None:
        """From arrays; see `bart_hk.load` for `dtype` and `device`.

        `others` are more members of an ensemble, which generates and scores with all of them.
        """
        use_persistent_cache()
        for member, tree in ((config, params), *others):
            check_parameters(tree, member)
        self.config = config
        self._other_configs = tuple(member for member, _ in others)
        self.training = False
        self.extras = dict(extras or {})
        self._engines: dict[Any, Engine] = {}
        self._device, self._dtype = resolve_device(device), resolve_dtype(dtype)
        self._params = self._place(params)
        self._other_params = [self._place(tree) for _, tree in others]
        self.heads = {
            name: Head(
                ClassificationHead(config, head.num_classes, head.inner_dim),
                self._place(head.params),
                head.labels,
                head.regression,
                head.multi_label,
            )
            for name, head in (heads or {}).items()
        }

    # --- Where it lives ---------------------------------------------------------------------------

    def _place(self, params: Mapping[str, Mapping[str, Any]]) -> Params:
        """`params` on the device, in the dtype."""
        place = placing(self._dtype, self._device)
        return map_leaves(lambda path, name, array: place(array), params)

    @property
    def _engine(self) -> Engine:
        """The compiled functions of the present dtype; those of others are kept."""
        if self._dtype not in self._engines:
            bart = BART(self.config, self._dtype)
            others = [BART(config, self._dtype) for config in self._other_configs]
            all_of_them = Ensemble((bart, *others)) if others else bart
            self._engines[self._dtype] = Engine(
                bart, FeatureExtractor(bart), Generator(all_of_them), Scorer(all_of_them)
            )
        return self._engines[self._dtype]

    @property
    def _generating_params(self) -> Any:
        """What the generator takes: the parameters, or those of every member of an ensemble."""
        return (self._params, *self._other_params) if self._other_params else self._params

    @property
    def model(self) -> BART:
        """The network: pure functions of `params`."""
        return self._engine.bart

    def digest(self) -> str:
        """Tells this model from others, wherever it is loaded: 16 hexadecimal digits.

        It follows from the config and from the first 64 values of every tensor, as training changes
        every tensor.
        """
        digest = hashlib.sha256()
        members = zip(
            (self.config, *self._other_configs), (self._params, *self._other_params), strict=True
        )
        for config, params in members:
            digest.update(repr(config).encode())
            for path in sorted(params):
                for name, value in sorted(params[path].items()):
                    digest.update(f"{path} {name} {value.shape} {value.dtype}".encode())
                    digest.update(np.asarray(value).reshape(-1)[:64].tobytes())
        return digest.hexdigest()[:16]

    @property
    def device(self) -> jax.Device:
        """Where the parameters are."""
        return next(iter(jax.tree.leaves(self._params)[0].devices()))

    def to(self, target: Any) -> Self:
        """Moves to a device ("cpu", "gpu:0", a `jax.Device`) or casts to a dtype ("bfloat16")."""
        try:
            self._dtype = resolve_dtype(target)
        except (TypeError, ValueError):
            self._device = resolve_device(target)
        self._params = self._place(self._params)
        self._other_params = [self._place(params) for params in self._other_params]
        for head in self.heads.values():
            head.params = self._place(head.params)
        return self

    def cuda(self) -> Self:
        """Moves to the first GPU; stays, with a warning, where jax sees none."""
        try:
            gpu = resolve_device("gpu")
        except ValueError:
            warnings.warn(f"jax sees no GPU: staying on {self.device}", stacklevel=2)
            return self
        return self.to(gpu)

    def cpu(self) -> Self:
        return self.to("cpu")

    def half(self) -> Self:
        return self.to("float16")

    def bfloat16(self) -> Self:
        return self.to("bfloat16")

    def float(self) -> Self:
        return self.to("float32")

    def train(self, mode: bool = True) -> Self:
        self.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)

    # --- Parameters -------------------------------------------------------------------------------

    @property
    def params(self) -> Params:
        """All parameters, heads included: {module path: {name: array}}.

        It may be assigned: a tree of the same paths and shapes takes effect without a compilation.
        Changing the dictionaries that this returns changes nothing.
        """
        tree = {path: dict(leaves) for path, leaves in self._params.items()}
        for name, head in self.heads.items():
            for part, leaves in head.params.items():
                tree[f"{_HEADS}/{name}/{part}"] = dict(leaves)
        return tree

    @params.setter
    def params(self, params: Mapping[str, Mapping[str, Any]]) -> None:
        body, heads = _split(params)
        check_parameters(body, self.config)
        if heads.keys() != self.heads.keys():
            raise ValueError(
                f"the parameters have the heads {sorted(heads)}, the model {sorted(self.heads)}; "
                "register or remove heads first"
            )
        for name, parts in heads.items():
            want = jax.tree.map(np.shape, self.heads[name].params, is_leaf=_is_array)
            have = jax.tree.map(np.shape, parts, is_leaf=_is_array)
            if have != want:
                raise ValueError(f"head {name!r} has the shapes {have} instead of {want}")
        self._params = self._place(body)
        for name, parts in heads.items():
            self.heads[name].params = self._place(parts)

    def loss(
        self,
        params: Params,
        key: jax.Array | None,
        batch: Mapping[str, Any],
        head: str | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The summed loss of a batch and its count, pure and traceable, for one's own optax loop.

        Args:
            params: as `bart.params`; gradients are with respect to it.
            key: a `jax.random` key turns dropout on; None is evaluation.
            batch: "src_tokens" int [B, S], right-padded (a decoder_only model reads none but for a
                head), and without a head "target" int [B, T], [B, S] of an encoder_only model
                (padding does not count) and optionally "prev_output_tokens" [B, T] (default: the
                target with its last token moved to the front). With a head "target" is the class
                int [B], or the value float [B] of a regression, or 1 and 0 for the classes that a
                row has, [B, C], where they do not exclude each other.
            head: name of a registered head; None is sequence to sequence.

        Returns:
            Float32 scalars: the sum in nats (squared errors for a regression), and the number of
            target tokens or rows. Divide once, after summing over batches.

        Raises:
            KeyError: there is no such head.
            TypeError: the batch is no dictionary.
            ValueError: the batch lacks an array, or a target is outside of the vocabulary or of the
                head's classes (inside of `jit`, where values are unknown, the loss is then nan).
        """
        bart, pad = self.model, self.config.pad_token_id
        body, heads = _split(params)
        reads = head is not None or "encoder" in self.config.sides
        if not isinstance(batch, Mapping):
            raise TypeError(f"batch={batch!r:.80} is no dictionary of arrays")
        for name in ("target", "src_tokens") if reads else ("target",):
            if name not in batch:
                raise ValueError(f"the batch has no {name!r}; it has {', '.join(batch) or 'none'}")
        self._check_targets(batch["target"], head)
        target = jnp.asarray(batch["target"])
        src_tokens = jnp.asarray(batch["src_tokens"] if reads else target)
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        shifted = batch.get("prev_output_tokens")
        if shifted is None:
            shifted = _shift_right(target if head is None else src_tokens, pad)
        shifted = jnp.asarray(shifted)
        if head is None:
            features = bart.features(body, src_tokens, shifted, keys=keys[:2]).features
            mask = target != pad
            return losses.cross_entropy(bart.project(body, features), target, mask)[0], jnp.sum(
                mask, dtype=jnp.float32
            )
        registered = self._head(head)
        sentence = sentence_representation(bart, body, src_tokens, shifted, keys[:2])
        logits = registered.module.apply(heads[head], sentence, keys[2])
        mask = jnp.ones(target.shape[:1], bool)
        count = jnp.float32(target.shape[0])
        if registered.multi_label:
            return losses.binary_cross_entropy(logits, target, mask), count
        if registered.regression:
            return losses.squared_error(logits[:, 0], target, mask), count
        return losses.cross_entropy(logits, target, mask)[0], count

    def _check_targets(self, target: Any, head: str | None) -> None:
        """Raises ValueError for a token or a class that there is not, where values are known."""
        size, what = self.config.vocab_size, "tokens of the vocabulary"
        if head is not None:
            registered = self._head(head)
            size, what = registered.module.num_classes, f"classes of the head {head!r}"
            if registered.regression or registered.multi_label:
                return
        if isinstance(target, jax.core.Tracer):
            return
        values = np.asarray(target)
        if wrong := values[(values < 0) | (values >= size)].tolist():
            raise ValueError(f"the target {wrong[0]} is outside of the {size} {what}")

    def save(
        self,
        directory: str | Path,
        head: str | None = None,
        *,
        also: Callable[[Path], None] | None = None,
    ) -> None:
        """Writes config, parameters and heads as a directory; see `write_model`."""
        heads = {
            name: HeadFiles(h.params, h.labels, h.regression, h.multi_label)
            for name, h in self.heads.items()
        }
        write_model(directory, self.config, self._params, heads, self.extras, head=head, also=also)

    # --- Heads ------------------------------------------------------------------------------------

    def register_classification_head(
        self,
        name: str,
        num_classes: int | None = None,
        embedding_size: int | None = None,
        *,
        inner_dim: int | None = None,
        labels: Sequence[str] | None = None,
        regression: bool = False,
        seed: int = 1,
    ) -> None:
        """Adds a freshly initialised head, or replaces the one of that name.

        Args:
            name: what `predict` and `classify` call it.
            num_classes: its outputs; the number of labels by default, 1 for a regression.
            embedding_size: taken and ignored, as in fairseq: the width is the model's.
            inner_dim: width of its hidden layer; the model's by default.
            labels: names of the classes, all different.
            regression: its one output is a value.
            seed: of the initialisation.

        Raises:
            ValueError: an argument makes no head, or two of them contradict each other.
        """
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"{name!r} cannot name a head: it must not be empty or hold a '/'")
        if labels is not None and (
            not isinstance(labels, Sequence)
            or isinstance(labels, str)
            or not all(isinstance(label, str) for label in labels)
            or len(set(labels)) < len(labels)
        ):
            raise ValueError(f"head {name!r}: labels={labels!r} must be a list of different names")
        if num_classes is None:
            if not labels and not regression:
                raise ValueError(f"head {name!r} needs num_classes >= 1, or labels")
            num_classes = len(labels or [""])
        for key, value in (("num_classes", num_classes), ("inner_dim", inner_dim)):
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if value is not None and (not whole or value < 1):
                raise ValueError(f"head {name!r}: {key}={value!r} must be a number, 1 or more")
        if labels is not None and len(labels) != num_classes:
            raise ValueError(f"head {name!r}: {len(labels)} labels for {num_classes} classes")
        if regression and num_classes != 1:
            raise ValueError(f"head {name!r}: a regression has one output, not {num_classes}")
        module = ClassificationHead(self.config, num_classes, inner_dim)
        old = self.heads.get(name)
        if old is not None and old.module != module:
            logger.warning(
                "re-registering head %r with num_classes %d (was %d) and inner_dim %s (was %s)",
                name,
                num_classes,
                old.module.num_classes,
                inner_dim,
                old.module.inner_dim,
            )
        params = self._place(module.init(jax.random.key(seed)))
        self.heads[name] = Head(module, params, list(labels) if labels else None, regression)

    def remove_classification_head(self, name: str) -> None:
        """Forgets a head."""
        self._head(name)
        del self.heads[name]

    def _head(self, name: str | None) -> Head:
        known = ", ".join(sorted(self.heads)) or "none; register_classification_head adds one"
        if name is None:
            if len(self.heads) != 1:
                raise ValueError(f"say which head: head=NAME; there are: {known}")
            return next(iter(self.heads.values()))
        if name not in self.heads:
            raise KeyError(f"there is no head {name!r}; there are: {known}")
        return self.heads[name]


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape")


def _split(params: Mapping[str, Mapping[str, Any]]) -> tuple[Params, dict[str, Params]]:
    """The body's parameters, and each head's under its own paths."""
    if not isinstance(params, Mapping) or not all(isinstance(v, Mapping) for v in params.values()):
        raise TypeError(
            f"params={params!r:.80} is no tree as bart.params is, {{module path: {{name: array}}}}"
        )
    body: Params = {}
    heads: dict[str, Params] = {}
    for path, leaves in params.items():
        if path.startswith(f"{_HEADS}/") and path.count("/") == 2:
            _, name, part = path.split("/")
            heads.setdefault(name, {})[part] = dict(leaves)
        else:
            body[path] = dict(leaves)
    return body, heads


def _shift_right(tokens: jax.Array, pad: int) -> jax.Array:
    """Each row with its last real token moved to the front (fairseq's prev_output_tokens)."""
    count = jnp.sum(tokens != pad, axis=1, keepdims=True)
    last = jnp.take_along_axis(tokens, jnp.maximum(count - 1, 0), axis=1)
    shifted = jnp.concatenate([last, tokens[:, :-1]], axis=1)
    return jnp.where(jnp.arange(tokens.shape[1]) < count, shifted, pad)
