"""Between the arguments in a fairseq checkpoint and `BARTConfig`.

A checkpoint of before 2020 holds `args`, a flat Namespace; later ones hold `cfg`, whose nodes are
dictionaries or, for a BART, again a Namespace. What they do not say is the architecture's; sizes
are those of the weights. Sources: fairseq `models/bart/model.py`, `checkpoint_utils.py`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bart_hk.config import ARCHITECTURES, LATENT, OWN_ARCHITECTURES, Activation, BARTConfig

# Names for the same thing that are not registered in fairseq: the model's, and the one in the
# published mBART-50 checkpoints, which fairseq's users rename by hand.
_ALIASES = {"bart": "bart_large", "denoising_large": "mbart_large"}
HEAD_WIDTH = 64  # of every published BART: what is assumed where nothing says

_READ = (  # what the arguments say about a BART beyond its sizes
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_learned_pos",
    "decoder_learned_pos",
    "encoder_normalize_before",
    "decoder_normalize_before",
    "layernorm_embedding",
    "no_scale_embedding",
    "share_all_embeddings",
    "share_decoder_input_output_embed",
    "activation_fn",
    "pooler_activation_fn",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "pooler_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
)
# Arguments under which fairseq builds a network that is no BART, and the values that do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "no_token_positional_embeddings": (False, None),
    "no_decoder_final_norm": (False, None),
    "adaptive_input": (False, None),
    "adaptive_softmax_cutoff": (None, "", []),
    "cross_self_attention": (False, None),
    "no_cross_attention": (False, None),
    "char_inputs": (False, None),
    "base_layers": (0, None),
    "scale_attn": (False, None),
    "scale_heads": (False, None),
    "scale_fc": (False, None),
    "scale_resids": (False, None),
    "encoder_add_adapters": (False, None),
    "decoder_add_adapters": (False, None),
}
# What fairseq's activation functions are called; the values of the others under its names.
_WRITTEN_ACTIVATIONS = {
    **{name: name for name in ("relu", "gelu", "gelu_fast", "gelu_accurate", "tanh", "linear")},
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_accurate"),
    "gelu_python": "gelu",
    "relu2": "relu_squared",
}

Shapes = Mapping[str, tuple[int, ...]]


def settings_of(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a checkpoint as one flat dictionary; None where there are none.

    Of `cfg` the nodes of the model, the task and the criterion count, in this order.
    """
    args = checkpoint.get("args")
    if isinstance(args, Mapping):
        return dict(args)
    cfg = checkpoint.get("cfg")
    if not isinstance(cfg, Mapping):
        return None
    settings: dict[str, Any] = {}
    for node, name in (("criterion", "criterion"), ("task", "task"), ("model", "arch")):
        values = cfg.get(node)
        if isinstance(values, Mapping):
            settings |= {key: value for key, value in values.items() if key != "_name"}
            if isinstance(values.get("_name"), str):
                settings[name] = values["_name"]
    return settings


def layers_to_keep(settings: Mapping[str, Any], side: str) -> list[int] | None:
    """The layers of a side that fairseq keeps while it loads; None for all of them."""
    kept = settings.get(f"{side}_layers_to_keep")
    if kept is None or _same_value(kept, ""):
        return None
    if not isinstance(kept, str) or not re.fullmatch(r"\d+(,\d+)*", kept):
        raise ValueError(
            f"{side}_layers_to_keep={_shown(kept)} is no list of layers such as '0,2,4'"
        )
    return [int(layer) for layer in kept.split(",")]


def config_from_fairseq(
    settings: Mapping[str, Any] | None,
    state: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
) -> BARTConfig:
    """The config of a state (`fairseq.upgrade`) that was saved with these arguments.

    Without arguments (`None`, a bare state dict) the network is taken to be one of the published
    kind: heads 64 wide, gelu, scaled embeddings where it is pre-norm (mBART).

    Args:
        overrides: fields of `BARTConfig`, and "arch"; they win over the arguments.

    Raises:
        ValueError: no BART, or arguments and weights contradict each other; one line, which names
            the argument.
        TypeError: an override is neither "arch" nor a field of `BARTConfig`.
    """
    overrides = dict(overrides or {})
    arch = overrides.pop("arch", None)
    shapes = {name: tuple(np.shape(tensor)) for name, tensor in state.items()}
    learned = {
        side: {**(settings or {}), **overrides}.get(f"{side}_learned_pos") is not False
        for side in ("encoder", "decoder")
    }
    sizes = _sizes(shapes, learned)
    if settings is None and arch is None:
        base, values = BARTConfig(), _guessed(state, shapes, overrides)
    else:
        settings = settings or {}
        base = _architecture(arch or settings.get("arch"))
        _check_kind(settings)
        values = _said(settings, base)
    for name, stated in {**(settings or {}), **overrides}.items():
        found = sizes.get(name)
        by_user = name in overrides
        # A table's length is what counts for positions; training may have used less of it.
        if found is None or stated is None or _same_value(stated, found):
            continue
        if by_user or name not in ("vocab_size", "max_source_positions", "max_target_positions"):
            what = "was asked for" if by_user else "is what the arguments say"
            raise ValueError(f"{name}={_shown(stated)} {what}, but the weights have {found}")
    values = {**values, **{name: v for name, v in overrides.items() if name not in sizes}, **sizes}
    return base.replace(**values)


def _architecture(name: Any) -> BARTConfig:
    """The defaults of an architecture; ValueError unless it is a BART's."""
    if name is None:
        return BARTConfig()
    found = ARCHITECTURES.get(_ALIASES.get(name, name)) if isinstance(name, str) else None
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(
            f"the architecture {_shown(name)} is not a BART (known are {known}); if it is one "
            "under a name of its own, say which defaults it has: arch='bart_large'"
        )
    return found


def _check_kind(settings: Mapping[str, Any]) -> None:
    for name, neutral in _NEUTRAL.items():
        if name in settings and not any(_same_value(settings[name], n) for n in neutral):
            value = _shown(settings[name])
            raise ValueError(f"{name}={value} is an option that no BART here can have")
    width = settings.get("encoder_embed_dim")
    for name in ("decoder_embed_dim", "decoder_input_dim", "decoder_output_dim"):
        other = settings.get(name)
        if width is not None and other is not None and not _same_value(width, other):
            raise ValueError(
                f"{name}={_shown(other)} differs from encoder_embed_dim={_shown(width)}: a BART "
                "has one width"
            )


def _shown(value: Any) -> str:
    """A value of a file, of which nothing is known, in a message."""
    plain = value is None or isinstance(value, str | int | float)
    return repr(value)[:80] if plain else f"a {type(value).__name__}"


def _same_value(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _said(settings: Mapping[str, Any], base: BARTConfig) -> dict[str, Any]:
    """The fields that the arguments name, with the types of `BARTConfig`."""
    values: dict[str, Any] = {}
    for name in _READ:
        value, default = settings.get(name), getattr(base, name)
        if value is None:
            continue
        if isinstance(default, Activation):
            if not isinstance(value, str):
                raise ValueError(f"{name} is {_shown(value)}, which is no name of a function")
            values[name] = value
            continue
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if type(value) not in kinds:
            raise ValueError(f"{name} is {_shown(value)}, which is no {kinds[-1].__name__}")
        values[name] = type(default)(value)
    # As fairseq: the older name where the newer one is zero, and all tables shared are two shared.
    older = settings.get("relu_dropout")
    if not values.get("activation_dropout") and type(older) is float:
        values["activation_dropout"] = older
    if values.get("share_all_embeddings", base.share_all_embeddings):
        values["share_decoder_input_output_embed"] = True
    return values


def _sizes(shapes: Shapes, learned: Mapping[str, bool]) -> dict[str, int]:
    """The fields that the shapes of the tensors decide; `learned` are the position tables."""
    vocabulary = _shape(shapes, "encoder.embed_tokens.weight", 2)
    sizes = {"vocab_size": vocabulary[0], "encoder_embed_dim": vocabulary[1]}
    pad = BARTConfig.pad_token_id
    for side, positions in (("encoder", "source"), ("decoder", "target")):
        numbers = {m[1] for name in shapes if (m := re.match(rf"{side}\.layers\.(\d+)\.", name))}
        sizes[f"{side}_layers"] = len(numbers)
        inner = _shape(shapes, f"{side}.layers.0.fc1.weight", 2)
        sizes[f"{side}_ffn_embed_dim"] = inner[0]
        if learned[side]:
            rows = _shape(shapes, f"{side}.embed_positions.weight", 2)[0]
            sizes[f"max_{positions}_positions"] = rows - pad - 1
    return sizes


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"there is no tensor {name}, which every BART has")
    if len(shapes[name]) != dimensions:
        raise ValueError(f"{name} has the shape {shapes[name]}, which is not a BART's")
    return shapes[name]


def _guessed(
    state: Mapping[str, Any], shapes: Shapes, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """What the tensors of a bare state dict say, and what is usual for the rest."""
    width = _shape(shapes, "encoder.embed_tokens.weight", 2)[1]
    values: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        values[f"{side}_normalize_before"] = f"{side}.layer_norm.weight" in shapes
        heads = f"{side}_attention_heads"
        if width % HEAD_WIDTH == 0:
            values[heads] = width // HEAD_WIDTH
        elif heads not in overrides:
            raise ValueError(
                f"it holds tensors without arguments, and their width {width} is no multiple of "
                f"{HEAD_WIDTH}, the usual width of a head: say {heads}=NUMBER"
            )
    values["no_scale_embedding"] = not values["encoder_normalize_before"]
    values["layernorm_embedding"] = "encoder.layernorm_embedding.weight" in shapes
    tables = [state["encoder.embed_tokens.weight"]]
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        tables.append(state.get(name, tables[-1]))
    shared = _same(tables[1], tables[2])
    values["share_decoder_input_output_embed"] = shared
    values["share_all_embeddings"] = shared and _same(tables[0], tables[1])
    return values


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two tables are equal, mostly because they are one."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.ctypes.data == other.ctypes.data or bool(np.array_equal(one, other))


def arguments(config: BARTConfig, task: str, languages: Iterable[str] = ()) -> dict[str, Any]:
    """The `args` with which the real fairseq builds the network of `config` (`Namespace`).

    Raises:
        ValueError: fairseq has no such network, or its dictionaries no such ids.
    """
    fixed = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "unk_token_id": 3}
    for name, index in fixed.items():
        if getattr(config, name) not in (index, None):
            raise ValueError(
                f"{name}={getattr(config, name)}, but fairseq's dictionaries begin with "
                "<s> <pad> </s> <unk>"
            )
    if config.source_encoder_layers:
        raise ValueError(
            f"source_encoder_layers={config.source_encoder_layers}, but a BART of fairseq's reads "
            "the vocabulary that it writes"
        )
    if len(config.sides) < 2:
        raise ValueError(f"flavour={config.flavour}, but a BART of fairseq's has both stacks")
    if config.attention_head_dim is not None:
        raise ValueError(
            f"attention_head_dim={config.attention_head_dim}, but fairseq's heads share the "
            f"model's width of {config.encoder_embed_dim}"
        )
    if config.n_latent_tokens:
        raise ValueError(
            f"n_latent_tokens={config.n_latent_tokens}, but a BART of fairseq's has no bottleneck; "
            "write it with --to native"
        )
    args: dict[str, Any] = {"arch": nearest_architecture(config)}
    for field in dataclasses.fields(config):
        if not field.name.endswith("_token_id"):
            args[field.name] = getattr(config, field.name)
    for name in (
        "vocab_size",
        "position_offset",
        "final_logits_bias",
        "attention_head_dim",
        "flavour",
        "source_encoder_layers",
        "source_vocab_size",
        *LATENT,
    ):
        del args[name]
    for name in ("activation_fn", "pooler_activation_fn"):
        if args[name] not in _WRITTEN_ACTIVATIONS:
            known = ", ".join(sorted(set(_WRITTEN_ACTIVATIONS.values())))
            raise ValueError(f"{name}={args[name]} is none of fairseq's: {known}")
        args[name] = _WRITTEN_ACTIVATIONS[args[name]]
    width = config.encoder_embed_dim
    languages = list(languages)
    args |= {
        "decoder_embed_dim": width,
        "decoder_input_dim": width,
        "decoder_output_dim": width,
        "relu_dropout": 0.0,
        "adaptive_softmax_cutoff": None,
        "adaptive_softmax_dropout": 0,
        "encoder_embed_path": None,
        "decoder_embed_path": None,
        "no_token_positional_embeddings": False,
        # What fairseq's tasks ask for while they are set up.
        "task": task,
        "criterion": "label_smoothed_cross_entropy" if task == "translation" else "cross_entropy",
        "data": ".",
        "tokens_per_sample": config.max_positions,
        "sample_break_mode": "complete",
        "seed": 1,
        "fp16": False,
        "source_lang": "source" if task == "translation" else None,
        "target_lang": "target" if task == "translation" else None,
        "langs": ",".join(languages) if languages else None,
        "add_lang_token": bool(languages),
        # Or fairseq 0.12 looks for them where they are not (MultilingualDenoisingConfig).
        "train_subset": "train",
        "valid_subset": "valid",
    }
    if task != "translation":  # the noise that BART was trained with
        args |= {
            "mask": 0.3,
            "mask_random": 0.1,
            "mask_length": "span-poisson",
            "poisson_lambda": 3.5,
            "replace_length": 1,
            "permute_sentences": 1,
            "insert": 0.0,
            "permute": 0.0,
            "rotate": 0.0,
        }
    return args


def nearest_architecture(config: BARTConfig) -> str:
    """The one of fairseq's architectures that shares most of its fields with `config`."""

    def likeness(name: str) -> int:
        other = ARCHITECTURES[name]
        return sum(
            getattr(config, field.name) == getattr(other, field.name)
            for field in dataclasses.fields(config)
        )

    theirs = (name for name in ARCHITECTURES if name not in OWN_ARCHITECTURES)
    return max(theirs, key=likeness)
