"""`BARTHubInterface`: a loaded BART behind the methods of fairseq's hub.

Names, argument order, defaults and return shapes are fairseq's (`hub_utils.py`,
`models/bart/hub_interface.py`); results are NumPy arrays (`bart_hk.hub.arrays`). Single items and
lists are taken alike, a list's results are aligned with it, and rows of any lengths go together.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bart_hk.hub.arrays import Array, as_array
from bart_hk.hub.features import default_max_tokens
from bart_hk.hub.scoring import ScoringBART


class BARTHubInterface(ScoringBART):
    """Text in, text out; features, classes, scores.

    Text to ids and back: `TextBART`; texts from texts: `GeneratingBART`; how probable they are, and
    masks: `ScoringBART`; parameters and heads: `LoadedBART`. Here are features and classes.
    """

    @property
    def _features_max_tokens(self) -> int:
        return self._max_tokens or default_max_tokens(self.device.platform)

    def _check_length(self, rows: Sequence[np.ndarray]) -> None:
        limit = min(self.max_positions)
        for number, row in enumerate(rows):
            if len(row) > limit:
                raise ValueError(
                    f"tokens exceeds maximum length: {len(row)} > {limit} (row {number}); "
                    "encode(..., truncate=True) cuts a text to fit"
                )

    def extract_features(self, tokens: Any, return_all_hiddens: bool = False) -> Any:
        """The decoder's features of ids, before the output projection.

        Args:
            tokens: ids [T] for features [1, T, D]; a right-padded [B, T] for [B, T, D], zero at the
                padding; or a list of arrays [T_i] for a list of [T_i, D].
            return_all_hiddens: a list of all layers instead (of lists, for a list): the embedding,
                then each layer's output.

        Raises:
            ValueError: a row is longer than the model's positions, or empty.
        """
        rows = self._rows(tokens)
        self._check_length(rows.rows)
        states = self._engine.features.hidden_states(
            self._params,
            rows.rows,
            all_layers=return_all_hiddens,
            max_tokens=self._features_max_tokens,
        )
        layers = [rows.like_input([row[i] for row in states]) for i in range(len(states[0]))]
        if not return_all_hiddens:
            return layers[0]
        if isinstance(layers[0], list):
            return [list(row) for row in zip(*layers, strict=True)]
        return layers

    def predict(self, head: str, tokens: Any, return_logits: bool = False) -> Array:
        """Log-probabilities float32 [B, C] of the classes of ids (see `extract_features`).

        Each row is classified from the features at its last `</s>`, however many it has. Where the
        classes of a head do not exclude each other (multi-label), each has its own probability.

        Args:
            head: its name.
            tokens: ids [T], a padded [B, T], or a list of arrays.
            return_logits: logits instead; a regression head always gives its value.

        Raises:
            KeyError: there is no such head.
            ValueError: a row has no `</s>`, is too long, or empty.
        """
        registered = self._head(head)
        rows = self._rows(tokens).rows
        self._check_length(rows)
        for number, row in enumerate(rows):
            if self.config.eos_token_id not in row:
                raise ValueError(
                    f"row {number} has no </s> ({self.config.eos_token_id}), whose features are "
                    "classified; encode() adds it"
                )
        result = np.empty((len(rows), registered.module.num_classes), np.float32)
        sentences = self._engine.features.sentences(
            self._params, rows, max_tokens=self._features_max_tokens
        )
        for batch, features in sentences:
            logits = registered.logits(registered.params, features)
            if not (return_logits or registered.regression):
                normalise = jax.nn.log_sigmoid if registered.multi_label else jax.nn.log_softmax
                logits = normalise(logits)
            result[batch] = jax.device_get(logits)[: len(batch)]
        return as_array(result)

    def classify(self, texts: Any, head: str | None = None) -> Any:
        """The most probable class of each text: (label, probability).

        Args:
            texts: a string, or a tuple for a pair; or a list of them, for a list of results. Texts
                that are too long are cut.
            head: its name; may be left out where there is one head.

        Returns:
            The label's name, or the class's number where names are not known, and its probability.
        """
        registered = self._head(head)
        if registered.regression:
            raise ValueError("a regression head has no classes; predict(head, ids) gives its value")
        name = next(name for name, h in self.heads.items() if h is registered)
        if not isinstance(texts, list):
            return self.classify([texts], head)[0]
        if not texts:
            raise ValueError("empty batch: give at least one text")
        probabilities = np.exp(self.predict(name, self.encode(texts, truncate=True)))
        labels: Sequence[Any] = registered.labels or range(registered.module.num_classes)
        return [(labels[int(row.argmax())], float(row.max())) for row in probabilities]
