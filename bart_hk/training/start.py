"""What a run begins with: its task, its tokenizer, its network and the first parameters."""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import DROPOUT_RATES, LATENT, BARTConfig
from bart_hk.hub.opening import open_model
from bart_hk.model import BART
from bart_hk.tasks import (
    Task,
    Tree,
    pairs,
    question_answering,
    sentence_options,
    sentence_ranking,
    token_classification,
)
from bart_hk.tasks.files import CHARACTERS
from bart_hk.tasks.kinds import TASKS
from bart_hk.text import TextEncoder, train_bpe, train_characters
from bart_hk.training.config import ConfigError, TrainConfig
from bart_hk.zoo import load_tokenizer

_log = logging.getLogger(__name__)

# What surrounds texts, how they are generated and read, is what the present task says.
_OF_TASKS = (
    *("prepend_bos", "source_suffix", "generation", "max_positions"),
    *(sentence_options.READING, question_answering.READING, pairs.READING),
    *(sentence_ranking.READING, token_classification.READING),
)


@dataclass
class Start:
    """A run before its first update."""

    task: Task
    encoder: TextEncoder
    bart: BART
    params: Tree
    extras: Mapping[str, Any] = field(default_factory=dict)  # of the restored model's bart_hk.json


def make_task(config: TrainConfig) -> Task:
    """The configured task; its files are read and checked.

    Raises:
        ConfigError: the criterion is another task's.
    """
    name, criterion = config.task._name, config.criterion._name
    kind = TASKS[name]
    known = [offered._name for offered in kind.criteria]
    if criterion not in known:
        raise ConfigError(f"task={name} has criterion={' or '.join(known)}, not {criterion}")
    return kind.make(config.task, config.criterion)


def start(config: TrainConfig, task: Task, key: jax.Array) -> Start:
    """Restores or makes the network, encodes the data, initialises what is new.

    Raises:
        ConfigError, ValueError, FileNotFoundError: model or tokenizer are not there or do not fit.
    """
    restore = config.checkpoint.restore_file
    network = functools.partial(
        BART,
        dtype=jnp.bfloat16 if config.common.bf16 else jnp.float32,
        checkpoint_activations=config.optimization.checkpoint_activations,
        stack_layers=config.optimization.stack_layers,
    )
    # A restored model brings its own sizes and ids; these stay what the `model` group says.
    rates = {name: getattr(config.model, name) for name in DROPOUT_RATES}
    if restore:
        if getattr(config.task, "tokenizer", None) or getattr(config.task, "vocab_size", None):
            raise ConfigError(
                "task.tokenizer and task.vocab_size are for training from scratch; "
                f"checkpoint.restore_file={restore} brings its own tokenizer"
            )
        members, encoder = open_model(restore)
        if len(members) > 1:
            raise ConfigError(f"checkpoint.restore_file={restore} names {len(members)} models")
        (files,) = members
        asked, there = config.model.flavour, files.config.flavour
        if asked not in (there, BARTConfig.flavour):
            raise ConfigError(
                f"model.flavour={asked}, and checkpoint.restore_file={restore} is {there}: a "
                "restored model keeps its flavour; leave it out"
            )
        encoder = task.text_encoder(encoder)
        config_of = files.config.replace(**rates)
        if not config_of.n_latent_tokens:  # a bottleneck can be put into any model
            config_of = config_of.replace(**{name: getattr(config.model, name) for name in LATENT})
        bart = network(task.model_config(config_of, encoder))
        params, heads, extras = files.params, files.heads, files.extras
        missing = parameter_shapes(bart.config).keys() - params.keys()
        if missing:  # what the task puts in front of the restored model
            key, new_key = jax.random.split(key)
            # Within one program what is not missing is never drawn.
            fresh = jax.jit(lambda key: {path: bart.init(key)[path] for path in missing})(new_key)
            params = {**params, **fresh}
        if config.checkpoint.reset_heads:
            heads = {}
    else:
        encoder = task.text_encoder(_new_encoder(config.task, task))
        bart = network(task.model_config(_new_config(config.model, encoder), encoder))
        key, body_key = jax.random.split(key)
        params, heads, extras = bart.init(body_key), {}, {}
    if bart.config.flavour not in task.flavours:
        remedy = "take another model" if restore else "set model.flavour"
        raise ConfigError(
            f"task={config.task._name} trains a model that is {' or '.join(task.flavours)}, and "
            f"{restore or 'this one'} is {bart.config.flavour}: {remedy}"
        )
    if bart.config.source_encoder_layers and not task.separate_sources:
        raise ConfigError(
            f"{restore or 'the model'} reads another vocabulary than it writes "
            f"(source_encoder_layers={bart.config.source_encoder_layers}), which "
            f"task={config.task._name} cannot train: take task=translation"
        )
    task.encode(encoder, bart.config)
    tree = task.init(bart, params, key, heads)
    # Copies: the update step overwrites its inputs, which must not be a mapped file.
    tree = jax.tree.map(lambda a: jnp.array(a, jnp.float32, copy=True), tree)
    count = sum(int(np.size(a)) for a in jax.tree.leaves(tree))
    _log.info("%s: %s parameters", restore or "a new model", f"{count:,}")
    extras = {name: value for name, value in extras.items() if name not in _OF_TASKS}
    return Start(task, encoder, bart, tree, extras)


def _new_encoder(config: Any, task: Task) -> TextEncoder:
    if task.tokenizer_folder is not None:
        encoder = TextEncoder.load(task.tokenizer_folder)
        return encoder.insert_symbols([s for s in task.symbols() if s not in encoder.dictionary])
    if config.tokenizer and config.vocab_size:
        raise ConfigError("give task.tokenizer or task.vocab_size, not both")
    if config.tokenizer == CHARACTERS:
        return train_characters(task.texts())
    if config.tokenizer:
        return load_tokenizer(config.tokenizer)
    if config.vocab_size:
        return train_bpe(task.texts(), config.vocab_size)
    return TextEncoder.gpt2()


def _new_config(node: Any, encoder: TextEncoder) -> BARTConfig:
    """The `model` group's values with the tokenizer's size and ids."""
    values = {f.name: getattr(node, f.name) for f in dataclasses.fields(BARTConfig)}
    dictionary = encoder.dictionary
    bos, eos = dictionary.bos(), dictionary.eos()
    ids = {
        "bos_token_id": bos,
        "pad_token_id": dictionary.pad(),
        "eos_token_id": eos,
        "unk_token_id": dictionary.unk(),
        "decoder_start_token_id": eos,
        "forced_bos_token_id": bos,
        "forced_eos_token_id": eos,
        "vocab_size": len(dictionary),
    }
    missing = [name for name in ("bos", "pad", "eos") if ids[f"{name}_token_id"] is None]
    if missing:
        raise ConfigError(f"the tokenizer has no {', '.join(missing)}, which a BART needs")
    return BARTConfig(**{**values, **ids})
