"""What a BART is made of: `BARTConfig`, under fairseq's field names, and the named architectures.

This is the only list of model fields. The Hydra node of the `model` group is generated from it and
`bart_hk.checkpoint.huggingface` holds the only map to Hugging Face's `config.json`.
"""

import dataclasses
import difflib
import enum
import math
from dataclasses import dataclass
from typing import Any


class Activation(enum.StrEnum):
    """What a BART's config can name, in fairseq's and Hugging Face's spelling."""

    relu = "relu"
    gelu = "gelu"  # exact, through erf
    gelu_fast = "gelu_fast"  # tanh approximation, as the next four
    gelu_accurate = "gelu_accurate"
    gelu_new = "gelu_new"
    gelu_pytorch_tanh = "gelu_pytorch_tanh"
    gelu_python_tanh = "gelu_python_tanh"
    gelu_python = "gelu_python"  # exact
    gelu_10 = "gelu_10"  # exact, clipped to [-10, 10]
    quick_gelu = "quick_gelu"  # x sigmoid(1.702 x)
    silu = "silu"
    swish = "swish"
    mish = "mish"
    laplace = "laplace"
    leaky_relu = "leaky_relu"
    relu2 = "relu2"
    relu_squared = "relu2"  # fairseq's name for it
    relu6 = "relu6"
    sigmoid = "sigmoid"
    tanh = "tanh"
    linear = "linear"
    prelu = "prelu"  # these two have parameters: see ACTIVATION_PARAMETERS
    xielu = "xielu"

    @classmethod
    def _missing_(cls, value: object) -> "Activation | None":
        return cls.__members__.get(str(value))  # another name of a member


# Of an activation that is trained, one number for each layer under each of these names, which are
# those of transformers, and its first value.
ACTIVATION_PARAMETERS: dict[Activation, dict[str, float]] = {
    Activation.prelu: {"weight": 0.25},
    Activation.xielu: {
        "alpha_p": math.log(math.expm1(0.8)),
        "alpha_n": math.log(math.expm1(0.3)),
    },
}


class Flavour(enum.StrEnum):
    """Which of the two stacks a BART has."""

    encoder_decoder = "encoder_decoder"  # writes a text from a text
    encoder_only = "encoder_only"  # reads: features, masked tokens, classes
    decoder_only = "decoder_only"  # goes on after a text: a causal language model


class LatentPooling(enum.StrEnum):
    """What of the encoder's states becomes latent tokens."""

    first_n = "first_n"  # the states of the first positions, one for each latent token
    mean = "mean"  # the mean over real tokens, for all of them


class LatentActivation(enum.StrEnum):
    """What bounds a latent."""

    tanh = "tanh"
    identity = "identity"


_SIDES = {
    Flavour.encoder_decoder: ("encoder", "decoder"),
    Flavour.encoder_only: ("encoder",),
    Flavour.decoder_only: ("decoder",),
}


@dataclass(frozen=True)
class BARTConfig:
    """The shape, the dropout rates and the special ids of a BART. The defaults are bart_large's.

    Encoder and decoder share one width, as in every published BART. Source of the names and the
    defaults: fairseq `models/bart/model.py`.
    """

    # Fields of a stack that is not there have no effect.
    flavour: Flavour = Flavour.encoder_decoder

    # Sizes.
    vocab_size: int = 50265  # V, rows of the embedding table, specials and `<mask>` included
    encoder_embed_dim: int = 1024  # D, of encoder and decoder
    encoder_ffn_embed_dim: int = 4096  # F
    encoder_layers: int = 12  # L
    encoder_attention_heads: int = 16  # H
    decoder_ffn_embed_dim: int = 4096
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    # K, width of a head; None is D / H, as in every published BART.
    attention_head_dim: int | None = None
    max_source_positions: int = 1024
    max_target_positions: int = 1024
    # A new encoder for sources of another vocabulary, whose output takes the place of the encoder's
    # token embeddings (Lewis et al. 2019, 3.4): its layers, like the encoder's, and its symbols.
    source_encoder_layers: int = 0  # 0: none
    source_vocab_size: int = 0
    # A bottleneck between encoder and decoder, which then reads that many vectors of that size and
    # nothing else of the source (`bart_hk.model.latent`).
    n_latent_tokens: int = 0  # 0: none
    latent_token_size: int = 0
    latent_pooling: LatentPooling = LatentPooling.first_n
    latent_activation: LatentActivation = LatentActivation.tanh
    latent_variational: bool = False  # a mean and a variance each; training draws from them
    # Row of the position table that the first token uses: pad + 1 in fairseq, 2 in Hugging Face
    # (there also where pad is 0).
    position_offset: int = 2

    # Structure.
    encoder_normalize_before: bool = False  # pre-norm with a final layer norm (mBART)
    decoder_normalize_before: bool = False
    layernorm_embedding: bool = True
    # False: sines and cosines in place of a table that is trained (Vaswani et al. 2017, 3.5), in
    # the order of fairseq's `SinusoidalPositionalEmbedding`.
    encoder_learned_pos: bool = True
    decoder_learned_pos: bool = True
    no_scale_embedding: bool = True  # False multiplies embeddings by sqrt(D)
    share_all_embeddings: bool = True  # one table for source and target
    share_decoder_input_output_embed: bool = True  # the output projection is the target table
    final_logits_bias: bool = False  # a bias [V] on the logits (Hugging Face; zero in most BARTs)
    activation_fn: Activation = Activation.gelu
    pooler_activation_fn: Activation = Activation.tanh  # of classification heads

    # Regularisation, active in training only.
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    pooler_dropout: float = 0.0
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0

    # Special ids, and how decoding starts and ends.
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    unk_token_id: int | None = 3
    decoder_start_token_id: int = 2
    forced_bos_token_id: int | None = 0  # first generated token; None leaves it to the model
    forced_eos_token_id: int | None = 2  # last token where the maximal length is reached

    def __post_init__(self) -> None:
        kinds: tuple[tuple[str, type[enum.StrEnum]], ...] = (
            ("flavour", Flavour),
            ("activation_fn", Activation),
            ("pooler_activation_fn", Activation),
            ("latent_pooling", LatentPooling),
            ("latent_activation", LatentActivation),
        )
        for name, kind in kinds:
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, kind(value))
            except ValueError:
                known = ", ".join(a.value for a in kind)
                raise ValueError(f"{name}={value!r} is not known; choose one of: {known}") from None
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), field.type
            fits = isinstance(value, float | int if wanted is float else wanted)  # type: ignore[arg-type]
            if not fits or (isinstance(value, bool) and wanted is not bool):
                wanted = getattr(wanted, "__name__", wanted)
                raise ValueError(f"{field.name}={value!r:.80} must be of type {wanted}")
        if self.pooler_activation_fn in ACTIVATION_PARAMETERS:
            raise ValueError(
                f"pooler_activation_fn={self.pooler_activation_fn} has parameters, for which a "
                "classification head has no place; choose another"
            )
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.attention_head_dim is not None and self.attention_head_dim < 1:
            raise ValueError(
                f"attention_head_dim must be at least 1, not {self.attention_head_dim}"
            )
        for side in self.sides:
            heads = getattr(self, f"{side}_attention_heads")
            if self.attention_head_dim is None and self.encoder_embed_dim % heads:
                raise ValueError(
                    f"encoder_embed_dim={self.encoder_embed_dim} must be divisible by "
                    f"{side}_attention_heads={heads}"
                )
            if not getattr(self, f"{side}_learned_pos") and self.encoder_embed_dim < 4:
                raise ValueError(
                    f"{side}_learned_pos=False needs an encoder_embed_dim of at least 4, not "
                    f"{self.encoder_embed_dim}"
                )
        for name in DROPOUT_RATES:
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in _IDS:
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}={token} is outside the vocabulary of {self.vocab_size}")
        if self.share_all_embeddings and not self.share_decoder_input_output_embed:
            # fairseq's meaning: sharing all three includes the output projection.
            raise ValueError(
                "share_all_embeddings=True needs share_decoder_input_output_embed=True "
                "(one matrix for source, target and output)"
            )
        if bool(self.source_encoder_layers) != bool(self.source_vocab_size):
            raise ValueError(
                f"source_encoder_layers={self.source_encoder_layers} and source_vocab_size="
                f"{self.source_vocab_size}: give both, or neither"
            )
        if self.source_encoder_layers:
            self._check_source_encoder()
        self._check_bottleneck()
        if self.position_offset < 0:
            raise ValueError(f"position_offset must not be negative, not {self.position_offset}")

    def _check_source_encoder(self) -> None:
        if self.source_encoder_layers < 1 or self.source_vocab_size < 1:
            raise ValueError("source_encoder_layers and source_vocab_size must not be negative")
        self.require("encoder", f"source_encoder_layers={self.source_encoder_layers}")
        if not (self.share_all_embeddings and "decoder" in self.sides):
            raise ValueError(
                f"source_encoder_layers={self.source_encoder_layers} needs a decoder and "
                "share_all_embeddings=True"
            )
        ids = (self.bos_token_id, self.pad_token_id, self.eos_token_id)
        if max(ids) >= self.source_vocab_size:
            raise ValueError(
                f"bos, pad and eos are {ids}, outside of source_vocab_size={self.source_vocab_size}"
            )

    def _check_bottleneck(self) -> None:
        tokens, size = self.n_latent_tokens, self.latent_token_size
        if tokens < 0 or size < 0:
            raise ValueError(
                f"n_latent_tokens={tokens} and latent_token_size={size} must not be negative"
            )
        if bool(tokens) != bool(size):
            raise ValueError(
                f"n_latent_tokens={tokens} and latent_token_size={size}: give both, or neither"
            )
        if not tokens:
            return
        for side in ("encoder", "decoder"):
            self.require(side, f"n_latent_tokens={tokens}")
        if self.latent_pooling == LatentPooling.first_n and tokens > self.max_source_positions:
            raise ValueError(
                f"n_latent_tokens={tokens} is more than max_source_positions="
                f"{self.max_source_positions}, and latent_pooling=first_n takes a position for "
                "each; lower it, or set latent_pooling=mean"
            )

    @property
    def max_positions(self) -> int:
        """How many tokens fit into both stacks."""
        return min(self.max_source_positions, self.max_target_positions)

    @property
    def source_vocabulary(self) -> int:
        """How many symbols a source may have."""
        return self.source_vocab_size if self.source_encoder_layers else self.vocab_size

    @property
    def source_encoder(self) -> "BARTConfig":
        """Of the encoder of the new sources, as if it were a model of its own."""
        return self.replace(
            vocab_size=self.source_vocab_size,
            encoder_layers=self.source_encoder_layers,
            source_encoder_layers=0,
            source_vocab_size=0,
        )

    @property
    def sides(self) -> tuple[str, ...]:
        """The stacks that there are: of "encoder" and "decoder"."""
        return _SIDES[self.flavour]

    def require(self, side: str, what: str) -> None:
        """Raises ValueError unless there is the stack that `what` needs."""
        if side not in self.sides:
            others = [f.value for f in Flavour if side in _SIDES[f]]
            raise ValueError(
                f"{what} needs {'an' if side == 'encoder' else 'a'} {side}, which a model of "
                f"flavour={self.flavour} does not have; take one of {' or '.join(others)}"
            )

    def attended(self, source_length: int) -> int:
        """How many vectors of a source of that many tokens the decoder attends to."""
        return self.n_latent_tokens or source_length

    def attention_dim(self, side: str) -> int:
        """H K, the width of all heads of the "encoder" or the "decoder" together."""
        if self.attention_head_dim is None:
            return self.encoder_embed_dim
        return getattr(self, f"{side}_attention_heads") * self.attention_head_dim

    def replace(self, **changes: Any) -> "BARTConfig":
        """A copy with `changes`; a name that is not a field raises TypeError with the nearest."""
        for name in changes:
            if name not in _FIELDS:
                near = difflib.get_close_matches(name, _FIELDS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"BARTConfig has no field {name!r}{hint}")
        return dataclasses.replace(self, **changes)


_FIELDS = tuple(field.name for field in dataclasses.fields(BARTConfig))
_POSITIVE = (
    "vocab_size",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_layers",
    "encoder_attention_heads",
    "decoder_ffn_embed_dim",
    "decoder_layers",
    "decoder_attention_heads",
    "max_source_positions",
    "max_target_positions",
)
# The fields that act in training only.
DROPOUT_RATES = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "pooler_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
)
# Those of the bottleneck.
LATENT = tuple(name for name in _FIELDS if "latent_" in name)
_IDS = tuple(name for name in _FIELDS if name.endswith("_token_id"))

_BASE = {
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_ffn_embed_dim": 3072,
    "decoder_layers": 6,
    "decoder_attention_heads": 12,
}

# fairseq's registered architectures (models/bart/model.py). mBART's recipe adds
# encoder/decoder_normalize_before=True by flag; the architecture itself does not.
ARCHITECTURES: dict[str, BARTConfig] = {
    "bart_large": BARTConfig(),
    "bart_base": BARTConfig(**_BASE),  # type: ignore[arg-type]
    "mbart_large": BARTConfig(no_scale_embedding=False),
    "mbart_base": BARTConfig(no_scale_embedding=False, **_BASE),  # type: ignore[arg-type]
    "mbart_base_wmt20": BARTConfig(
        no_scale_embedding=False,
        layernorm_embedding=False,
        **_BASE,  # type: ignore[arg-type]
    ),
    # Of experiment=pretrain_mini; fairseq does not have it.
    "bart_mini": BARTConfig(
        vocab_size=8192,
        encoder_embed_dim=256,
        encoder_ffn_embed_dim=1024,
        encoder_layers=4,
        encoder_attention_heads=4,
        decoder_ffn_embed_dim=1024,
        decoder_layers=4,
        decoder_attention_heads=4,
        max_source_positions=256,
        max_target_positions=256,
    ),
    # bart_base with a bottleneck of the size of t5-vae-flax's.
    "bart_latent": BARTConfig(n_latent_tokens=6, latent_token_size=32, **_BASE),  # type: ignore[arg-type]
}
OWN_ARCHITECTURES = ("bart_mini", "bart_latent")  # which fairseq does not have


def architecture(name: str, **overrides: Any) -> BARTConfig:
    """The named architecture with some fields replaced.

    Raises:
        ValueError: the name is not known (the known ones are listed).
        TypeError: an override is not a field of BARTConfig.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture {name!r}; choose one of: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name].replace(**overrides)
