"""Training a student from a teacher: the group `distillation`, beside any criterion.

    bart-hk-convert OUT STUDENT --to native --decoder-layers 3
    bart-hk-train task=translation task.data=DATA checkpoint.restore_file=STUDENT \\
        distillation.teacher=OUT checkpoint.save_dir=SMALL

The loss is the criterion's, by `alpha_mlm`; the distance from the teacher's softened answers, by
`alpha_ce`; and that of hidden states, by `alpha_hid`. What is validated is the criterion's alone.
Source of names and weights: transformers, examples/research_projects/seq2seq-distillation
(Shleifer and Rush 2020), which has them from DistilBERT (Sanh et al. 2019).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bart_hk.checkpoint.students import layers_to_copy, layers_to_supervise
from bart_hk.config import BARTConfig, Flavour
from bart_hk.hub.opening import open_model
from bart_hk.model import BART
from bart_hk.tasks import Task, Tree
from bart_hk.tasks.teaching import Answers, hidden_loss
from bart_hk.text import TextEncoder


@dataclass
class DistillationConfig:
    """No teacher: the criterion alone."""

    teacher: str | None = None  # a directory or a name, as checkpoint.restore_file
    temperature: float = 2.0
    alpha_ce: float = 0.8  # of the soft targets
    alpha_mlm: float = 0.2  # of the criterion's own loss
    # Of hidden states, for a student as wide as its teacher. What each of its layers is to be like:
    # the teacher's layer that bart-hk-convert made it of, or, supervise_forward, the one up to
    # which it stands for the teacher's. (transformers' example compares what these layers read.)
    alpha_hid: float = 0.0
    supervise_forward: bool = False
    normalize_hidden: bool = False  # to mean 0 and variance 1 first


def check(config: DistillationConfig) -> None:
    """
    Raises:
        ValueError: a value makes no sense.
    """
    if not config.temperature > 0:
        raise ValueError(f"distillation.temperature={config.temperature} must be above 0")
    alphas = {name: getattr(config, name) for name in ("alpha_ce", "alpha_mlm", "alpha_hid")}
    for name, value in alphas.items():
        if not value >= 0:
            raise ValueError(f"distillation.{name}={value} must not be negative")
    if not any(alphas.values()):
        raise ValueError("distillation.alpha_ce, alpha_mlm and alpha_hid are all 0")


class Teacher:
    """A teacher in memory.

    Attributes:
        params: the tree that the loss takes beside the student's, on the device.
    """

    def __init__(
        self, config: DistillationConfig, task: Task, bart: BART, encoder: TextEncoder
    ) -> None:
        """Reads the teacher and makes sure that it speaks of what the student learns.

        Args:
            bart, encoder: the student's.

        Raises:
            FileNotFoundError, ValueError: it is not there, or it does not fit; DataError for its
                head.
        """
        assert config.teacher is not None  # whoever makes one has looked
        if getattr(task.criterion, "rdrop_alpha", 0.0):
            raise ValueError("distillation.teacher and criterion.rdrop_alpha exclude each other")
        members, text = open_model(config.teacher)
        if len(members) > 1:
            raise ValueError(f"distillation.teacher={config.teacher} names {len(members)} models")
        (model,) = members
        _check_fits(config.teacher, model.config, bart.config, text, encoder)
        self._layers = _layers(config, model.config, bart.config) if config.alpha_hid else {}
        self._config, self._task, self._student = config, task, bart
        self._bart = BART(model.config, bart.dtype)
        tree = task.teacher_tree(model.params, model.heads)
        self.params: Tree = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)

    def loss(
        self, params: Tree, key: jax.Array, batch: dict[str, jax.Array], teacher: Tree
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `Task.loss`, with the teacher's parameters; `loss` is all together, and among the sums
        are its parts: `own_loss` of the criterion, `soft_loss`, and `hidden_loss`. Traced."""
        config, task = self._config, self._task
        states = bool(self._layers)
        mine = task.answers(self._student, params, key, batch, return_all_hiddens=states)
        right = task.answers(self._bart, teacher, None, batch, return_all_hiddens=states)
        own, sums = task.loss_of(self._student, mine, batch)
        soft = task.soft_loss(mine, right, config.temperature)
        loss = config.alpha_mlm * own + config.alpha_ce * soft
        sums |= {"own_loss": own, "soft_loss": soft}
        if states:
            hidden = self._hidden(mine, right)
            # A mean of the batch: as much of the loss as that of `count` rows or tokens.
            sums["hidden_loss"] = hidden * sums["count"]
            loss += config.alpha_hid * sums["hidden_loss"]
        return loss, sums

    def _hidden(self, mine: Answers, right: Answers) -> jax.Array:
        encoder, decoder = (
            (one.hidden_states or (), other.hidden_states or ())
            for one, other in ((mine.encoded, right.encoded), (mine.decoded, right.decoded))
        )
        normalize = self._config.normalize_hidden
        source = hidden_loss(*encoder, self._layers["encoder"], mine.encoded.src_mask, normalize)
        target = hidden_loss(*decoder, self._layers["decoder"], mine.target_mask, normalize)
        return source + target


def _check_fits(
    name: str, teacher: BARTConfig, student: BARTConfig, text: TextEncoder, mine: TextEncoder
) -> None:
    """Raises ValueError unless both read and write the same ids, and what one reads fits both."""
    what = f"distillation.teacher={name}"
    for whose, config in (("it", teacher), ("the student", student)):
        if config.flavour != Flavour.encoder_decoder:
            raise ValueError(f"{what}: {whose} is {config.flavour}, and both are encoder_decoder")
        if config.n_latent_tokens:
            raise ValueError(
                f"{what}: {whose} has a bottleneck (n_latent_tokens={config.n_latent_tokens}), "
                "whose latents no teacher knows"
            )
    if text.dictionary.symbols != mine.dictionary.symbols:
        raise ValueError(
            f"{what} has another vocabulary than the student ({len(text.dictionary)} and "
            f"{len(mine.dictionary)} symbols): begin with a student of it (bart-hk-convert "
            "--decoder-layers), or name its folder in task.tokenizer"
        )
    for field in ("vocab_size", "pad_token_id", "eos_token_id", "decoder_start_token_id"):
        if getattr(teacher, field) != getattr(student, field):
            raise ValueError(
                f"{what} has {field}={getattr(teacher, field)}, and the student "
                f"{getattr(student, field)}: their answers cannot be compared"
            )
    for field in ("max_source_positions", "max_target_positions"):
        if getattr(teacher, field) < getattr(student, field):
            raise ValueError(
                f"{what} has {field}={getattr(teacher, field)}, fewer than the student's "
                f"{getattr(student, field)}: begin with a student of it, or set model.{field}"
            )


def _layers(
    config: DistillationConfig, teacher: BARTConfig, student: BARTConfig
) -> dict[str, tuple[int, ...]]:
    """For each side, of the student's layers the numbers of the teacher's."""
    if teacher.encoder_embed_dim != student.encoder_embed_dim:
        raise ValueError(
            f"distillation.alpha_hid={config.alpha_hid} compares hidden states, and the teacher's "
            f"have the width {teacher.encoder_embed_dim}, the student's "
            f"{student.encoder_embed_dim}; set it to 0"
        )
    choose = layers_to_supervise if config.supervise_forward else layers_to_copy
    found = {}
    for side in ("encoder", "decoder"):
        counts = [getattr(model, f"{side}_layers") for model in (teacher, student)]
        try:
            found[side] = choose(*counts)
        except ValueError:
            raise ValueError(
                f"distillation.alpha_hid={config.alpha_hid}: the student has {counts[1]} {side} "
                f"layers, and its teacher only {counts[0]}; set it to 0"
            ) from None
    return found
