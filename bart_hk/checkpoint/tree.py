"""Which tensors a BART has, and how torch's names and layout become ours.

fairseq and Hugging Face give a tensor the same name nearly everywhere, and store a linear layer as
[out, in]: `encoder.layers.0.fc1.weight` is `encoder/layers_0/fc1`, `w` [in, out] in our tree. What
the two do differently (embeddings, output projection, heads) is in `fairseq.py`, `huggingface.py`.
"""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bart_hk.checkpoint.files import DTYPE_CODES, aligned
from bart_hk.config import ACTIVATION_PARAMETERS, BARTConfig, Flavour, LatentPooling
from bart_hk.torch_format import give_back, mapped_file

Shapes = dict[str, dict[str, tuple[int, ...]]]
Params = dict[str, dict[str, Any]]  # {module path: {parameter: array}}, Haiku's two-level dict

_TORCH_LEAVES = {
    "embeddings": "weight",
    "scale": "weight",
    "offset": "bias",
    "w": "weight",
    "b": "bias",
}


def parameter_shapes(config: BARTConfig) -> Shapes:
    """The paths and shapes of every parameter of the BART that `config` describes, heads apart.

    Equal to the tree that `bart_hk.model.BART(config).init` makes.
    """
    width, vocabulary = config.encoder_embed_dim, config.vocab_size
    shapes: Shapes = {}

    def linear(path: str, inputs: int, outputs: int) -> None:
        shapes[path] = {"w": (inputs, outputs), "b": (outputs,)}

    def layer_norm(path: str) -> None:
        shapes[path] = {"scale": (width,), "offset": (width,)}

    def attention(path: str, inner: int) -> None:
        for projection in ("q_proj", "k_proj", "v_proj"):
            linear(f"{path}/{projection}", width, inner)
        linear(f"{path}/out_proj", inner, width)
        layer_norm(f"{path}_layer_norm")

    if config.share_all_embeddings:
        shapes["embed_tokens"] = {"embeddings": (vocabulary, width)}
    if config.source_encoder_layers:
        source = parameter_shapes(config.source_encoder.replace(flavour=Flavour.encoder_only))
        shapes["source_encoder/embed_tokens"] = source["embed_tokens"]
        for path, leaves in source.items():
            if path.startswith("encoder/"):
                shapes[f"source_{path}"] = leaves
    for side, layers, inner, positions, pre_norm in (
        (
            "encoder",
            config.encoder_layers,
            config.encoder_ffn_embed_dim,
            config.max_source_positions,
            config.encoder_normalize_before,
        ),
        (
            "decoder",
            config.decoder_layers,
            config.decoder_ffn_embed_dim,
            config.max_target_positions,
            config.decoder_normalize_before,
        ),
    ):
        if side not in config.sides:
            continue
        if not config.share_all_embeddings:
            shapes[f"{side}/embed_tokens"] = {"embeddings": (vocabulary, width)}
        if getattr(config, f"{side}_learned_pos"):
            rows = positions + config.position_offset
            shapes[f"{side}/embed_positions"] = {"embeddings": (rows, width)}
        if config.layernorm_embedding:
            layer_norm(f"{side}/layernorm_embedding")
        for i in range(layers):
            layer = f"{side}/layers_{i}"
            attention(f"{layer}/self_attn", config.attention_dim(side))
            if side == "decoder" and "encoder" in config.sides:
                attention(f"{layer}/encoder_attn", config.attention_dim(side))
            linear(f"{layer}/fc1", width, inner)
            linear(f"{layer}/fc2", inner, width)
            if own := ACTIVATION_PARAMETERS.get(config.activation_fn):
                shapes[f"{layer}/activation_fn"] = dict.fromkeys(own, (1,))
            layer_norm(f"{layer}/final_layer_norm")
        if pre_norm:
            layer_norm(f"{side}/layer_norm")
    if config.n_latent_tokens:
        size = config.latent_token_size
        together = config.n_latent_tokens if config.latent_pooling == LatentPooling.mean else 1
        linear("bottleneck/to_latent", width, together * size)
        if config.latent_variational:
            linear("bottleneck/to_log_variance", width, together * size)
        linear("bottleneck/from_latent", size, width)
        shapes["bottleneck/embed_positions"] = {"embeddings": (config.n_latent_tokens, width)}
        layer_norm("bottleneck/layer_norm")
    if not config.share_decoder_input_output_embed:
        shapes["output_projection"] = {"w": (width, vocabulary)}
    if config.final_logits_bias:
        shapes["final_logits_bias"] = {"b": (vocabulary,)}
    return shapes


def check_parameters(params: Mapping[str, Mapping[str, Any]], config: BARTConfig) -> None:
    """Raise ValueError, naming the first parameter at fault, unless `params` is `config`'s tree."""
    expected = parameter_shapes(config)
    for path, leaves in expected.items():
        for name, shape in leaves.items():
            if name not in params.get(path, {}):
                raise ValueError(f"the parameters lack {path}/{name} with shape {shape}")
            found = tuple(np.shape(params[path][name]))
            if found != shape:
                raise ValueError(f"{path}/{name} has shape {found}; the config asks for {shape}")
            dtype = getattr(params[path][name], "dtype", None)
            if dtype not in DTYPE_CODES:
                raise ValueError(f"{path}/{name} has dtype {dtype}; parameters are floats")
    for path, given in params.items():
        for name in given:
            if name not in expected.get(path, {}):
                raise ValueError(f"the config has no place for the parameter {path}/{name}")


def map_leaves(
    function: Callable[[str, str, Any], Any], tree: Mapping[str, Mapping[str, Any]]
) -> Params:
    """The tree of what `function(path, name, leaf)` gives, two at a time.

    Copying a model's tensors takes the system's time as much as the processor's: with two threads
    it took three quarters of the time.
    """
    places = [(path, name, leaf) for path, leaves in tree.items() for name, leaf in leaves.items()]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda place: function(*place), places))
    mapped: Params = {path: {} for path in tree}
    for (path, name, _), result in zip(places, results, strict=True):
        mapped[path][name] = result
    return mapped


def place_leaves(params: Mapping[str, Mapping[str, Any]], place: Callable[[Any], Any]) -> Params:
    """What `place` makes of arrays that lie over a mapped file, of which nothing stays in memory.

    So a model on its way to a device is never in memory twice. Other arrays are placed as they are.
    """

    def take(path: str, name: str, array: Any) -> Any:
        return place_mapped(array, place)

    return map_leaves(take, params)


def place_mapped(array: Any, place: Callable[[Any], Any]) -> Any:
    """`place` of an array, of whose mapped file, if it lies over one, nothing stays in memory."""
    if not isinstance(array, np.ndarray) or mapped_file(array) is None:
        return place(array)
    own = array
    if array.flags.c_contiguous:  # it could be taken over as it is, file and all
        own = aligned(array.nbytes).view(array.dtype).reshape(array.shape)
        np.copyto(own, array)
    placed = place(own)
    give_back(array)
    return placed


def torch_name(path: str, name: str) -> str:
    """`encoder/layers_0/fc1`, `w` -> `encoder.layers.0.fc1.weight`."""
    module = re.sub(r"/layers_", "/layers/", path).replace("/", ".")
    return f"{module}.{_TORCH_LEAVES.get(name, name)}"


def to_torch(name: str, array: Any) -> np.ndarray:
    """A parameter in torch's layout, on the host: linear weights are [out, in] there."""
    array = np.asarray(array)
    return array.T if name == "w" else array


# Linear weights are their own inverse.
from_torch = to_torch


def head_from_torch(tensors: Mapping[str, Any]) -> Params:
    """A classification head's tree from its tensors `dense.weight`, ..., `out_proj.bias`."""
    return {
        module: {"w": from_torch("w", tensors[f"{module}.weight"]), "b": tensors[f"{module}.bias"]}
        for module in ("dense", "out_proj")
    }


def head_to_torch(params: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The inverse of `head_from_torch`, tensor names without a prefix."""
    return {
        torch_name(module, name): to_torch(name, params[module][name])
        for module in ("dense", "out_proj")
        for name in ("w", "b")
    }
