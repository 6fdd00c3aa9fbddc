"""`config.json` and `generation_config.json`, to a BARTConfig and back.

What transformers cannot express is kept by `huggingface.py` in a file of our own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import BARTConfig, architecture

# The only map from our config to Hugging Face's. Their defaults for absent keys are BARTConfig's.
_KEYS = {
    "vocab_size": "vocab_size",
    "encoder_embed_dim": "d_model",
    "encoder_ffn_embed_dim": "encoder_ffn_dim",
    "encoder_layers": "encoder_layers",
    "encoder_attention_heads": "encoder_attention_heads",
    "decoder_ffn_embed_dim": "decoder_ffn_dim",
    "decoder_layers": "decoder_layers",
    "decoder_attention_heads": "decoder_attention_heads",
    "max_source_positions": "max_position_embeddings",
    "max_target_positions": "max_position_embeddings",
    "activation_fn": "activation_function",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "pooler_dropout": "classifier_dropout",
    "encoder_layerdrop": "encoder_layerdrop",
    "decoder_layerdrop": "decoder_layerdrop",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
}
# Of no model of transformers', and there only where they say something: without them the fields
# above may make no BART.
_OURS = ("flavour", "attention_head_dim")
_DEFAULTS = BARTConfig()
# transformers' PLBartConfig has defaults of its own.
_PLBART_DEFAULTS = architecture("bart_base", vocab_size=50005, no_scale_embedding=False)
# The model types that can be read, and their classes' first part.
KINDS = {"bart": "Bart", "mbart": "MBart", "plbart": "PLBart", "bart_hk": "BartHk"}
GENERATION_IDS = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
# What a search is to be like, which a config.json says where there is no generation_config.json.
SEARCH = (
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "max_length",
    "min_length",
    "length_penalty",
    "diversity_penalty",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "early_stopping",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)


def config_from_json(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> BARTConfig:
    """The BARTConfig of a `config.json` and, where there is one, a `generation_config.json`.

    As in transformers, the latter alone says which ids are forced, if it exists; a decoder start is
    taken from either.

    Raises:
        ValueError: no BART, mBART or PLBart, or a value of the wrong type or range.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"model_type {kind!r} is not one that can be read: {', '.join(KINDS)}")
    defaults = _PLBART_DEFAULTS if kind == "plbart" else _DEFAULTS
    values: dict[str, Any] = {}
    for field, key in _KEYS.items():
        default = getattr(defaults, field)
        value = config.get(key, str(default) if isinstance(default, str) else default)
        kind_of_value = str if isinstance(default, str) else type(default)
        if kind_of_value is float and type(value) is int:
            value = float(value)
        if type(value) is not kind_of_value:  # exactly: a bool is an int to isinstance
            raise ValueError(f"{key} is {value!r}, which is no {kind_of_value.__name__}")
        values[field] = value
    head_dim = config.get("attention_head_dim")
    if type(head_dim) not in (int, type(None)):
        raise ValueError(f"attention_head_dim is {head_dim!r}, which is no int")
    values["attention_head_dim"] = head_dim
    values["flavour"] = config.get("flavour", _DEFAULTS.flavour)
    values["no_scale_embedding"] = not config.get("scale_embedding", kind == "plbart")
    # Untied in transformers means that nothing is tied once weights have been loaded.
    tied = bool(config.get("tie_word_embeddings", True))
    values["share_all_embeddings"] = values["share_decoder_input_output_embed"] = tied
    values["encoder_normalize_before"] = values["decoder_normalize_before"] = kind == "mbart"
    # Hugging Face's tables begin with two unused rows whatever the padding id is.
    values["position_offset"] = 2
    fairseq_ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}.items()
    values["unk_token_id"] = 3 if fairseq_ids <= values.items() else None

    eos = values["eos_token_id"]
    # transformers' BartConfig has a default, the others none; without one <s> is the start.
    start = config.get("decoder_start_token_id", None if kind in ("mbart", "plbart") else eos)
    forced_bos = config.get("forced_bos_token_id")
    if forced_bos is None and config.get("force_bos_token_to_be_generated"):  # its name in 2020
        forced_bos = values["bos_token_id"]
    forced_eos = config.get("forced_eos_token_id", eos)
    if generation is not None:
        start = generation.get("decoder_start_token_id", start)
        forced_bos = generation.get("forced_bos_token_id")
        forced_eos = generation.get("forced_eos_token_id")
    if isinstance(forced_eos, list):
        forced_eos = forced_eos[0]
    return BARTConfig(
        **values,
        decoder_start_token_id=values["bos_token_id"] if start is None else start,
        forced_bos_token_id=forced_bos,
        forced_eos_token_id=forced_eos,
    )


def transformers_lacks(config: BARTConfig) -> list[str]:
    """The fields of `config` whose values transformers' BART and mBART cannot express."""
    fields = []
    if config.flavour != "encoder_decoder":
        fields.append("flavour")
    if config.encoder_normalize_before != config.decoder_normalize_before:
        fields.append("encoder_normalize_before")
    if not config.layernorm_embedding:
        fields.append("layernorm_embedding")
    if config.max_source_positions != config.max_target_positions:
        fields.append("max_source_positions")
    if config.position_offset != 2:
        fields.append("position_offset")
    if config.attention_head_dim is not None:
        fields.append("attention_head_dim")
    if config.source_encoder_layers:
        fields.append("source_encoder_layers")
    if config.n_latent_tokens:
        fields.append("n_latent_tokens")
    learned = ("encoder_learned_pos", "decoder_learned_pos")
    fields += [name for name in learned if not getattr(config, name)]
    return fields


def config_to_json(
    config: BARTConfig,
    head: HeadFiles | None = None,
    dtype: str = "float32",
    *,
    plbart: bool = False,
) -> dict[str, Any]:
    """The `config.json` of a model for conditional generation or, with `head`, for classification.

    `plbart` gives it the name that a BART of programming languages has in transformers, if it is
    one that normalises where a BART does.

    Raises:
        ValueError: transformers has no such classification head.
    """
    lacking = transformers_lacks(config)
    pre_norm = config.decoder_normalize_before
    kind = "bart_hk" if lacking else "mbart" if pre_norm else "plbart" if plbart else "bart"
    prefix = KINDS[kind]
    content: dict[str, Any] = {
        "architectures": [
            prefix + ("ForSequenceClassification" if head else "ForConditionalGeneration")
        ],
        "model_type": kind,
        "is_encoder_decoder": config.flavour == "encoder_decoder",
        "torch_dtype": dtype,
    }
    for field, key in _KEYS.items():
        content.setdefault(key, getattr(config, field))
    for name in _OURS:
        if getattr(config, name) != getattr(_DEFAULTS, name):
            content[name] = getattr(config, name)
    content["activation_function"] = config.activation_fn.value
    content["scale_embedding"] = not config.no_scale_embedding
    content["tie_word_embeddings"] = config.share_all_embeddings
    content["num_hidden_layers"] = config.encoder_layers
    content["decoder_start_token_id"] = config.decoder_start_token_id
    # The model as such does not use these; converters of other runtimes (CTranslate2) ask for them.
    content["normalize_before"] = content["add_final_layer_norm"] = pre_norm
    content["normalize_embedding"] = config.layernorm_embedding
    if head:
        if head.inner_dim != config.encoder_embed_dim or config.pooler_activation_fn != "tanh":
            raise ValueError(
                "a head of transformers uses tanh and has the model's width inside; this one has "
                f"pooler_activation_fn={config.pooler_activation_fn} and inner_dim={head.inner_dim}"
                f", not {config.encoder_embed_dim}: save without head="
            )
        labels = head.labels or [f"LABEL_{i}" for i in range(head.num_classes)]
        content["id2label"] = {str(i): label for i, label in enumerate(labels)}
        content["label2id"] = {label: i for i, label in enumerate(labels)}
        content["problem_type"] = (
            "regression"
            if head.regression
            else "multi_label_classification"
            if head.multi_label
            else "single_label_classification"
        )
    return content


def generation_to_json(config: BARTConfig) -> dict[str, Any]:
    ids = {key: getattr(config, key) for key in GENERATION_IDS}
    return {key: value for key, value in ids.items() if value is not None}


def beyond_json(config: BARTConfig) -> dict[str, Any]:
    """The fields of `config` that the two JSON files would give back differently."""
    read_back = config_from_json(config_to_json(config), generation_to_json(config))
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(read_back, field.name)
    }
