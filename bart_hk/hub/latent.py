"""Between texts and the latents of a bottleneck, and from one latent to another.

A latent is float32 [n, Z]: n latent tokens of Z numbers (`bart_hk.model.latent`). Wherever latents
are taken they may also be flat, [n Z].
"""

import functools
from typing import Any

import jax
import numpy as np

from bart_hk.config import LatentActivation
from bart_hk.data.batching import buckets_up_to, pad_rows, plan_shapes
from bart_hk.hub.arrays import Array, as_array
from bart_hk.hub.features import BUCKETS, default_max_tokens
from bart_hk.hub.scoring import ScoringBART
from bart_hk.model import BART, EncoderOutput, Params

METHODS = ("slerp", "lerp")
_SMALL = 1e-6  # sine of an angle below which an arc is a line


@functools.partial(jax.jit, static_argnums=0)
def _latents(bart: BART, params: Params, src_tokens: jax.Array) -> jax.Array:
    """float32 [B, n, Z] of int32 [B, S]."""
    found = bart.encode(params, src_tokens).latents
    assert found is not None  # the caller has looked
    return found.mean


@functools.partial(jax.jit, static_argnums=0)
def _expanded(bart: BART, params: Params, latents: jax.Array) -> EncoderOutput:
    return bart.expand(params, latents)


def lerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The point at `t` of the line from `a` (t=0) to `b` (t=1)."""
    return (1 - t) * a + t * b


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The point at `t` of the arc from `a` to `b`, [..., Z]: each vector of the last axis turns by
    t times the angle between the two (Shoemake 1985), and its length changes as evenly as theirs.

    Vectors that are equal, opposite or zero have no arc: there it is the line.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = np.clip((a * b).sum(-1) / np.where(lengths > 0, lengths, 1.0), -1, 1)
    angle = np.arccos(cosine)[..., None]
    sine = np.sin(angle)
    arc = (sine > _SMALL) & (lengths > 0)[..., None]
    safe = np.where(arc, sine, 1.0)
    turned = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / safe
    return np.where(arc, turned, lerp(a, b, t))


def between(
    a: Any, b: Any, steps: int = 11, *, method: str = "slerp", whole: bool = False
) -> np.ndarray:
    """Latents on the way from one to another: float32 [steps, n, Z], both ends among them.

    Args:
        a, b: float [n, Z].
        steps: at least 2.
        method: "slerp" along an arc, "lerp" along a line.
        whole: one arc for the vector of all n Z numbers, instead of one for every latent token.

    Raises:
        ValueError: the shapes differ, or an argument makes no sense.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"a has the latent shape {a.shape} and b {b.shape}; interpolate latents of one model"
        )
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not one of {', '.join(METHODS)}")
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 2:
        raise ValueError(
            f"steps={steps!r} must be a number of at least 2: both ends are among them"
        )
    step = slerp if method == "slerp" else lerp
    ends = (a.reshape(-1), b.reshape(-1)) if whole else (a, b)
    found = [step(*ends, i / (steps - 1)).reshape(a.shape) for i in range(steps)]
    return np.stack([a, *found[1:-1], b]).astype(np.float32)


class LatentBART(ScoringBART):
    """A loaded BART whose texts have latents, where it has a bottleneck."""

    def encode_latent(self, sentences: Any) -> Array:
        """The latents of texts: float32 [n, Z] of one, [B, n, Z] of a list.

        Args:
            sentences: a text or a list of texts; or ids as for `extract_features`.

        Raises:
            ValueError: the model has no bottleneck, or a row is too long or empty.
        """
        self._check_bottleneck("encode_latent")
        single = isinstance(sentences, str)
        if single or (isinstance(sentences, list) and sentences and isinstance(sentences[0], str)):
            tokens = self.encode([sentences] if single else sentences)
        else:
            single = not isinstance(sentences, list | tuple) and np.ndim(sentences) == 1
            tokens = sentences
        rows, limit = self._rows(tokens).rows, self.config.max_source_positions
        for number, row in enumerate(rows):
            if len(row) > limit:
                raise ValueError(
                    f"row {number} has {len(row)} tokens, and max_source_positions={limit}; "
                    "encode(..., truncate=True) cuts a text to fit"
                )
        found = np.zeros((len(rows), *self._latent_shape), np.float32)
        plan = plan_shapes(
            [len(row) for row in rows],
            max_tokens=self._max_tokens or default_max_tokens(self.device.platform),
            buckets=buckets_up_to(limit, BUCKETS),
        )
        for chosen, (count, length) in plan:
            batch = pad_rows([rows[i] for i in chosen], self.config.pad_token_id, length, count)
            found[chosen] = np.asarray(_latents(self.model, self._params, batch))[: len(chosen)]
        return as_array(found[0] if single else found)

    def decode_latent(self, latents: Any, beam: int = 1, **kwargs: Any) -> Any:
        """The texts that latents stand for: a string of one latent, a list of several.

        Args:
            latents: float [n, Z] or [n Z]; or [B, n, Z] or [B, n Z] for a list.
            beam: hypotheses that are searched; with `sampling=True`, samples that are drawn.
            **kwargs: `generate`'s; with `nbest` of 2 and more, a list of texts for each latent.

        Raises:
            ValueError: the model has no bottleneck, the latents do not divide into its sizes or are
                not finite, or the options do not go together.
        """
        self._check_bottleneck("decode_latent")
        several, single = self._latents_of(latents)
        if kwargs.get("match_source_len"):
            raise ValueError(
                "match_source_len=True: latents do not tell how long their source was; leave it out"
            )
        # What stands for the sources: the search asks for their lengths alone.
        row = np.full(self.config.max_source_positions, self.config.eos_token_id, np.int32)
        found = self.generate(
            [row] * len(several),
            beam,
            encoder_out=_expanded(self.model, self._params, several),
            **{"attention": False, **kwargs},
        )
        if kwargs.get("nbest", 0) > 1:
            texts: list[Any] = [[self.decode(h["tokens"]) for h in each] for each in found]
        else:
            texts = [self.decode(each[0]["tokens"]) if each else None for each in found]
        return texts[0] if single else texts

    def interpolate(
        self,
        a: Any,
        b: Any,
        steps: int = 11,
        *,
        method: str = "slerp",
        whole: bool = False,
        beam: int = 1,
        **kwargs: Any,
    ) -> list[str]:
        """The texts on the way from one to another, both ends (as they are decoded) among them.

        Args:
            a, b: texts, or latents of this model.
            steps: how many texts, at least 2.
            method: "slerp" along an arc, "lerp" along a line.
            whole: one arc for all n Z numbers, instead of one for every latent token.
            beam, **kwargs: as for `decode_latent`.

        Raises:
            ValueError: the model has no bottleneck, the latents are of different shapes, or an
                argument makes no sense.
        """
        self._check_bottleneck("interpolate")
        ends = [self.encode_latent(x) if isinstance(x, str) else np.asarray(x) for x in (a, b)]
        pair = [self._latents_of(x) for x in ends]
        for name, end, (_, single) in zip("ab", ends, pair, strict=True):
            if not single:
                raise ValueError(
                    f"{name} has the shape {end.shape}; interpolate goes from one latent, "
                    f"{self._latent_shape}, to one other"
                )
        path = between(pair[0][0][0], pair[1][0][0], steps, method=method, whole=whole)
        return self.decode_latent(path, beam, **kwargs)

    def sample_latent(self, count: int = 1, *, seed: int = 0, temperature: float = 1.0) -> Array:
        """Latents drawn from the prior, N(0, temperature^2): float32 [count, n, Z].

        Where a latent is a tanh, what is beyond its bounds is cut to them.

        Raises:
            ValueError: the model has no bottleneck, or an argument makes no sense.
        """
        self._check_bottleneck("sample_latent")
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"count={count!r} must be a number of latents, at least 1")
        if not 0 <= temperature < np.inf:
            raise ValueError(f"temperature={temperature} must be a number of at least 0")
        drawn = np.random.default_rng(seed).standard_normal((count, *self._latent_shape))
        drawn *= temperature
        if self.config.latent_activation == LatentActivation.tanh:
            drawn = np.clip(drawn, -1, 1)
        return as_array(drawn.astype(np.float32))

    @property
    def _latent_shape(self) -> tuple[int, int]:
        return self.config.n_latent_tokens, self.config.latent_token_size

    def _check_bottleneck(self, what: str) -> None:
        """Raises ValueError unless this is one model with latents."""
        if self._other_params:
            raise ValueError(
                f"{what}: an ensemble of {1 + len(self._other_params)} models has no latents in "
                "common; load one of them"
            )
        if not self.config.n_latent_tokens:
            raise ValueError(
                f"{what} needs a model with a bottleneck, and this one has n_latent_tokens=0; "
                "task=autoencoding model=bart_latent trains one"
            )

    def _latents_of(self, given: Any) -> tuple[np.ndarray, bool]:
        """float32 [B, n, Z], and whether one latent was given."""
        try:
            array = np.asarray(given, np.float32)
        except (TypeError, ValueError):
            raise ValueError(
                f"latents are numbers, as encode_latent gives them, not {type(given).__name__}"
            ) from None
        tokens, size = self._latent_shape
        if array.shape[-2:] != (tokens, size) and array.ndim in (1, 2):
            if array.shape[-1] != tokens * size:
                raise ValueError(
                    f"latents of shape {array.shape} do not divide into n_latent_tokens={tokens} x "
                    f"latent_token_size={size}; give (..., {tokens}, {size}) or (..., "
                    f"{tokens * size})"
                )
            array = array.reshape(*array.shape[:-1], tokens, size)
        if array.ndim not in (2, 3) or array.shape[-2:] != (tokens, size) or not array.size:
            raise ValueError(
                f"latents of shape {array.shape} are none of this model's, which are "
                f"(..., {tokens}, {size}) or (..., {tokens * size})"
            )
        if not np.isfinite(array).all():
            raise ValueError("latents hold a number that is not finite")
        return (array[None], True) if array.ndim == 2 else (array, False)
