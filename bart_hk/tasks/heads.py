"""What tasks share that train a head: a body and its head, restored or new, and a teacher's.

Shapes: B rows as the head sees them, S tokens, C outputs of the head.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import BARTConfig
from bart_hk.data.readers import DataError
from bart_hk.model import BART, ClassificationHead, Params, head_logits, sentence_ends
from bart_hk.tasks import TaskDefaults, losses
from bart_hk.tasks.teaching import Answers, soft_cross_entropy

Tree = dict[str, Params]  # {"model": the body's parameters, "head": the head's}

_SHOWN = 10  # classes in a message


class HeadTask(TaskDefaults, ABC):
    """Of batches with src_tokens and prev_output_tokens int32 [B, S].

    A task says which heads are right for it (`_outputs`, `_fits`, `_wanted`, and `_renumber` where
    their classes may be in another order) and, unless each row has one class of several, how their
    logits are judged (`_shaped`, `_weights`, `_real`, `_loss_of`).

    Attributes:
        head_option: of the criterion, what holds the head's name.
        reads_ends: the head reads the features at each row's last `</s>`, not at every token.
        labels: the classes in the order of the head's outputs; none where they have no names.
    """

    head_option: str = "head_name"
    reads_ends: bool = False
    labels: Sequence[str] = ()
    config: Any
    criterion: Any
    train: Any
    valid: Any
    _asked_order: bool = False  # whether an option has given the order of the labels

    # --- The head ---------------------------------------------------------------------------------

    @abstractmethod
    def _outputs(self) -> int:
        """How many outputs a new head has."""

    @abstractmethod
    def _fits(self, head: HeadFiles) -> bool:
        """Whether a head that is there gives what the data ask for."""

    @abstractmethod
    def _wanted(self) -> str:
        """What a head is to give, in words."""

    def _renumber(self, there: np.ndarray) -> None:
        """Changes the targets to the order of a restored head: class i becomes `there[i]`. Of
        tasks whose `_fits` takes another order."""
        raise NotImplementedError

    @property
    def _head_name(self) -> str:
        return getattr(self.criterion, self.head_option)

    def init(
        self, bart: BART, params: Params, key: jax.Array, restored: dict[str, HeadFiles]
    ) -> Tree:
        """The tree to train: the body, and the restored model's head of our name or a new one.

        A restored head has the same classes; its order of them becomes ours.

        Raises:
            DataError: it does not fit.
        """
        found = restored.get(self._head_name)
        if found is None:
            head = ClassificationHead(bart.config, self._outputs()).init(key)
            return {"model": params, "head": head}
        if not self._fits(found):
            raise self._misfit(found)
        self._adopt(found)
        return {"model": params, "head": found.params}

    def _misfit(self, head: HeadFiles) -> DataError:
        """The error for a restored head that gives something else than what is wanted."""
        there = head.labels or []
        more = ""
        same_kind = head.multi_label == getattr(self.config, "multi_label", False)
        if self.labels and set(self.labels) < set(there) and same_kind and not there[_SHOWN:]:
            more = f"; or, as it has these and others, keep it with task.labels=[{','.join(there)}]"
        return DataError(
            f"the restored head {self._head_name!r} gives {of_head(head)}, and wanted are "
            f"{self._wanted()}: name another head in criterion.{self.head_option}, or have a new "
            f"one in its place with checkpoint.reset_heads=true{more}"
        )

    def _adopt(self, head: HeadFiles) -> None:
        if not head.labels or not self.labels or head.labels == list(self.labels):
            return  # without names they are in the order that was asked for
        if self._asked_order:
            raise DataError(
                f"task.labels={self.labels} are in another order than those of the restored head "
                f"{self._head_name!r}, {head.labels}: leave task.labels out, or name a new head in "
                f"criterion.{self.head_option}"
            )
        self._renumber(np.array([head.labels.index(label) for label in self.labels], np.int32))
        self.labels = list(head.labels)

    def extras(self) -> dict[str, Any]:
        """How long rows were at most."""
        return {"max_positions": self.config.max_positions}

    def parts(self, params: Tree) -> tuple[Params, dict[str, HeadFiles]]:
        """The body's parameters, and the head with its label names."""
        head = HeadFiles(params["head"], list(self.labels) or None)
        return params["model"], {self._head_name: head}

    # --- Traced -----------------------------------------------------------------------------------

    def _shaped(self, logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """What is judged, classes last, of what the head gives: float32 [B, C], or [B, S, C] of
        every token."""
        return logits

    def _real(self, batch: dict[str, jax.Array], config: BARTConfig) -> jax.Array:
        """Where there are tokens, rows of padding left out: bool [B, S]."""
        return batch["src_tokens"] != config.pad_token_id

    def _weights(self, batch: dict[str, jax.Array]) -> jax.Array:
        """How much each row or token counts: bool or float32, the logits' shape but for classes."""
        return batch["mask"]

    def _loss_of(
        self, logits: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The summed loss, and sums: `count`, its divisor, and others."""
        mask, targets = self._weights(batch), batch["targets"]
        loss, _ = losses.cross_entropy(logits, targets, mask, self.criterion.label_smoothing)
        correct = ((logits.argmax(-1) == targets) & mask).sum()
        return loss, {"count": mask.sum(), "correct": correct}

    def _logits(
        self, bart: BART, params: Tree, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> jax.Array:
        """As `_shaped` gives them; a key turns dropout on."""
        both = batch["src_tokens"], batch["prev_output_tokens"]
        body, head = params["model"], params["head"]
        return self._shaped(
            head_logits(bart, body, head, *both, key, at_ends=self.reads_ends), batch
        )

    def loss(
        self, bart: BART, params: Tree, key: jax.Array | None, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The summed loss of a batch, and sums: `count`, its divisor, and others. Traced."""
        return self._judged(bart, self._logits(bart, params, batch, key), batch)

    def _judged(
        self, bart: BART, logits: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, sums = self._loss_of(logits, batch)
        return loss, sums | {"tokens": self._real(batch, bart.config).sum()}

    # --- A teacher --------------------------------------------------------------------------------

    def answers(
        self,
        bart: BART,
        params: Tree,
        key: jax.Array | None,
        batch: dict[str, jax.Array],
        return_all_hiddens: bool = False,
    ) -> Answers:
        """One pass; a key turns dropout on, without hidden states that of `loss`. Traced."""
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        source, previous = batch["src_tokens"], batch["prev_output_tokens"]
        body, hiddens = params["model"], {"return_all_hiddens": return_all_hiddens}
        encoded = bart.encode(body, source, key=keys[0], **hiddens)
        ends = sentence_ends(source, bart.config.eos_token_id) if self.reads_ends else None
        # Where hidden states are compared, the last layer's are those of all tokens, too.
        at = None if return_all_hiddens else ends
        decoded = bart.decode(body, previous, encoded, key=keys[1], at=at, **hiddens)
        features = decoded.features
        if ends is not None:
            places = ends if at is None else jnp.zeros_like(ends)
            features = features[jnp.arange(len(places)), places]
        head = ClassificationHead.of(bart.config, params["head"])
        logits = self._shaped(head.apply(params["head"], features, keys[2]), batch)
        real = self._real(batch, bart.config)
        # The encoder has seen what rows of padding hold, which is not to be compared.
        encoded = encoded._replace(src_mask=real)
        return Answers(logits, self._weights(batch), encoded, decoded, real)

    def loss_of(
        self, bart: BART, found: Answers, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss as `loss` has it, of a pass that is there. Traced."""
        return self._judged(bart, found.logits, batch)

    def soft_loss(self, student: Answers, teacher: Answers, temperature: float) -> jax.Array:
        """The summed distance from the teacher's answers. Traced."""
        return soft_cross_entropy(student.logits, teacher.logits, student.weights, temperature)

    def teacher_tree(self, params: Params, heads: dict[str, HeadFiles]) -> Tree:
        """A teacher's body, and its head of our name, or its only one, with our order of classes.

        Raises:
            DataError: there is no such head, or it does not fit.
        """
        name = self._head_name
        head = heads.get(name) or (next(iter(heads.values())) if len(heads) == 1 else None)
        if head is None:
            raise DataError(
                f"the teacher has no head {name!r} (criterion.{self.head_option}); it has "
                f"{', '.join(heads) or 'none'}"
            )
        if not self._fits(head):
            raise DataError(
                f"the teacher's head gives {of_head(head)}, and wanted are {self._wanted()}: take "
                "a teacher that was trained for this task"
            )
        if not head.labels or not self.labels:
            return {"model": params, "head": head.params}
        order = [head.labels.index(label) for label in self.labels]
        last = {
            leaf: np.asarray(array)[..., order] for leaf, array in head.params["out_proj"].items()
        }
        return {"model": params, "head": {**head.params, "out_proj": last}}


def described(
    labels: Sequence[str] | None, count: int, regression: bool = False, multi_label: bool = False
) -> str:
    """What a head gives, in words."""
    if regression:
        return "numbers"
    if labels is None:
        return f"{count} classes without names" if count != 1 else "a single score"
    shown = ", ".join(labels[:_SHOWN]) + (f", ... ({len(labels)})" if labels[_SHOWN:] else "")
    return f"{'any of ' if multi_label else ''}the classes {shown}"


def of_head(head: HeadFiles) -> str:
    """`described` of a head."""
    return described(head.labels, head.num_classes, head.regression, head.multi_label)
