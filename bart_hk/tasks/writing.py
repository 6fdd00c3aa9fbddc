"""What tasks share whose models write a text: the body alone, and the loss over target tokens."""

from typing import Any

import jax
import numpy as np

from bart_hk.model import BART, Params
from bart_hk.tasks import TaskDefaults, losses
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.teaching import Answers, soft_cross_entropy

Tree = dict[str, Params]  # {"model": the body's parameters}


class TextWriting(TaskDefaults):
    """Of batches with src_tokens int32 [B, S], prev_output_tokens and target int32 [B, T]."""

    criterion: CrossEntropyConfig

    def init(self, bart: BART, params: Params, key: jax.Array, restored: dict[str, Any]) -> Tree:
        """The body alone; heads of a restored model are left behind."""
        return {"model": params}

    def loss(
        self, bart: BART, params: Tree, key: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The summed loss over target tokens. Traced."""
        return losses.sequence_loss(bart, params["model"], key, batch, self.criterion)

    def answers(
        self,
        bart: BART,
        params: Tree,
        key: jax.Array | None,
        batch: dict[str, jax.Array],
        return_all_hiddens: bool = False,
    ) -> Answers:
        """One pass; a key turns dropout on. Traced."""
        encoded, decoded = losses.sequence_states(
            bart, params["model"], key, batch, return_all_hiddens
        )
        pad = bart.config.pad_token_id
        return Answers(
            bart.project(params["model"], decoded.features),
            losses.counted_tokens(batch["target"], pad, self.criterion),
            encoded,
            decoded,
            batch["target"] != pad,
        )

    def loss_of(
        self, bart: BART, found: Answers, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss as `loss` has it, of a pass that is there. Traced."""
        return losses.sequence_loss_of(
            found.logits, batch["target"], bart.config.pad_token_id, self.criterion
        )

    def soft_loss(self, student: Answers, teacher: Answers, temperature: float) -> jax.Array:
        """The summed distance from the teacher's answers. Traced."""
        return soft_cross_entropy(student.logits, teacher.logits, student.weights, temperature)

    def teacher_tree(self, params: Params, heads: dict[str, Any]) -> Tree:
        """A teacher's parameters as `init` gives those of the model that is trained."""
        return {"model": params}

    def predict(
        self, bart: BART, params: Tree, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Each row's sums; see `losses.sequence_outputs`. Traced."""
        return losses.sequence_outputs(bart, params["model"], batch, self.criterion)

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """`loss` as the criterion has it, `nll_loss`, `ppl` and `accuracy` of the next token."""
        return losses.sequence_metrics(outputs, self.criterion)

    def parts(self, params: Tree) -> tuple[Params, dict[str, Any]]:
        """The body's parameters; there is no head."""
        return params["model"], {}
