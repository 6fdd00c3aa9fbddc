"""`BARTHubInterface`: a loaded BART behind the methods of fairseq's hub.

Names, argument order, defaults and return shapes are fairseq's (`hub_utils.py`,
`models/bart/hub_interface.py`); results are NumPy arrays (`bart_hk.hub.arrays`). Single items and
lists are taken alike, a list's results are aligned with it, and rows of any lengths go together.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bart_hk.data.batching import buckets_up_to, pad_rows, plan_shapes
from bart_hk.hub.arrays import Array, as_array
from bart_hk.hub.features import BUCKETS, default_max_tokens
from bart_hk.hub.latent import LatentBART
from bart_hk.hub.zero_shot import HYPOTHESIS, answers, hypotheses, scores
from bart_hk.model import head_logits
from bart_hk.tasks.question_answering import (
    LABELS,
    as_trained,
    best_answers,
    best_spans,
    make_windows,
    span_logits,
)
from bart_hk.tasks.squad import Question
from bart_hk.tasks.token_classification import encode_words
from bart_hk.text.framing import frame


class BARTHubInterface(LatentBART):
    """Text in, text out; features, classes, scores.

    Text to ids and back: `TextBART`; texts from texts: `GeneratingBART`; how probable they are, and
    masks: `ScoringBART`; latents: `LatentBART`; parameters and heads: `LoadedBART`. Here are
    features and classes.
    """

    @functools.cached_property
    def _searches(self) -> dict[Any, Any]:
        """Of a network and the longest answer, compiled functions."""
        return {}

    @functools.cached_property
    def _token_logits(self) -> Any:
        return jax.jit(head_logits, static_argnums=0, static_argnames="at_ends")

    @property
    def _features_max_tokens(self) -> int:
        return self._max_tokens or default_max_tokens(self.device.platform)

    def _check_length(self, rows: Sequence[np.ndarray]) -> None:
        limit = self.config.max_positions
        for number, row in enumerate(rows):
            if len(row) > limit:
                raise ValueError(
                    f"tokens exceeds maximum length: {len(row)} > {limit} (row {number}); "
                    "encode(..., truncate=True) cuts a text to fit"
                )

    def extract_features(self, tokens: Any, return_all_hiddens: bool = False) -> Any:
        """The decoder's features of ids, before the output projection.

        An encoder_only model has its encoder's; a decoder_only model's are those from which it
        predicts each of the ids.

        Args:
            tokens: ids [T] for features [1, T, D]; a padded [B, T] for [B, T, D], zero at the
                padding; or a list of arrays [T_i] for a list of [T_i, D].
            return_all_hiddens: a list of all layers instead (of lists, for a list): the embedding,
                then each layer's output.

        Raises:
            ValueError: a row is longer than the model's positions, or empty.
        """
        self._check_one_vocabulary("extract_features")
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
        self._check_one_vocabulary("a head")
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

    def classify(
        self,
        texts: Any,
        head: str | None = None,
        *,
        labels: Sequence[str] | None = None,
        hypothesis_template: str = HYPOTHESIS,
        multi_label: bool = False,
        no_separator: bool | None = None,
    ) -> Any:
        """The most probable class of each text, (label, probability); or of any `labels`, all.

        Without `labels` a head answers that was trained for its classes. Where these do not exclude
        each other the answer is a list of those that are more probable than not, best first.

        With `labels` a head answers that was trained to tell entailment (bart.large.mnli's): for
        each text the list of all labels, best first, as transformers' pipeline
        "zero-shot-classification" ranks them.

        Args:
            texts: a string, or without `labels` a tuple for a pair; or a list of them, for a list
                of results. Texts that are too long are cut.
            head: its name; may be left out where there is one head.
            labels: names of classes, in words that make sense in the template.
            hypothesis_template: a sentence with one {} for the label.
            multi_label: every label is a question of its own; otherwise one of them holds.
            no_separator: False puts a second `</s>` between text and hypothesis, as transformers
                does. None: as the head was trained, which is without it if it was trained here.

        Returns:
            Of a text (label, probability) or a list of them. The label is the class's number where
            names are not known.

        Raises:
            KeyError: there is no such head.
            ValueError: the head has no classes or does not tell entailment, or an argument makes no
                sense.
        """
        registered = self._head(head)
        if registered.regression:
            raise ValueError("a regression head has no classes; predict(head, ids) gives its value")
        name = next(name for name, h in self.heads.items() if h is registered)
        single = not isinstance(texts, list)
        items = [texts] if single else texts
        if not items:
            raise ValueError("empty batch: give at least one text")
        if labels is None:
            found = self._trained_classes(name, items)
        else:
            claims = hypotheses(labels, hypothesis_template)
            if no_separator is None:
                no_separator = "training" in self.extras
            logits = self._entailment(name, items, claims, no_separator)
            yes, no = answers(registered.labels, registered.module.num_classes)
            ranked = scores(logits, yes, no, multi_label)
            found = [
                sorted(zip(labels, row.tolist(), strict=True), key=lambda pair: -pair[1])
                for row in ranked
            ]
        return found[0] if single else found

    def rank(
        self, options: Sequence[str], context: str | None = None, head: str | None = None
    ) -> Any:
        """How probable each option is, the best first: (option, probability).

        Args:
            options: two texts at least. What is too long with the context is cut.
            context: what they are options for.
            head: of task=sentence_ranking; its name may be left out where there is one head.

        Raises:
            KeyError: there is no such head.
            ValueError: it has more than one output, or there are fewer than two options.
        """
        registered = self._head(head)
        if registered.module.num_classes != 1 or registered.regression:
            raise ValueError("rank needs a head of one output, which task=sentence_ranking trains")
        if isinstance(options, str) or len(options) < 2:
            raise ValueError(f"options={options!r}: give a list of two texts at least")
        name = next(name for name, h in self.heads.items() if h is registered)
        rows: list[Any] = [
            (option,) if context is None else (option, context) for option in options
        ]
        scores = np.asarray(
            self.predict(name, self.encode(rows, truncate=True), return_logits=True), np.float64
        )[:, 0]
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        pairs = zip(options, probabilities.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    def answer(
        self,
        question: Any,
        context: Any,
        head: str | None = None,
        *,
        may_be_none: bool | None = None,
        max_answer_length: int | None = None,
    ) -> Any:
        """The part of the context that answers the question, and its score (a sum of two logits).

        Contexts are read in the windows that the model was trained with.

        Args:
            question, context: two texts; or two lists of so many, for a list of results.
            head: of task=question_answering; its name may be left out where there is one head.
            may_be_none: "" where having no answer scores more, as in SQuAD 2.0; by default where
                the model was trained with such questions.
            max_answer_length: tokens; by default as in training.

        Raises:
            KeyError: there is no such head.
            ValueError: it is of another kind, a text is empty, a question is too long, or there are
                not as many contexts as questions.
        """
        registered = self._head(head)
        if registered.labels != LABELS:
            raise ValueError("answer needs a head that task=question_answering trained")
        single = isinstance(question, str)
        texts = ([question], [context]) if single else (list(question), list(context))
        if len(texts[0]) != len(texts[1]) or not texts[0]:
            raise ValueError(
                f"{len(texts[0])} questions and {len(texts[1])} contexts; give one for each"
            )
        asked = []
        for number, (one, other) in enumerate(zip(*texts, strict=True)):
            if not one.strip() or not other.strip():
                raise ValueError(
                    "answer needs a question and a context that are not empty"
                    + ("" if single else f"; number {number} has one")
                )
            asked.append(Question(str(number), one, other, ()))
        options, trained_with_none = as_trained(self.extras, min(self.max_positions))
        if max_answer_length is not None:
            options.max_answer_length = max_answer_length
        if may_be_none is None:
            may_be_none = trained_with_none
        rows = make_windows("the question", asked, self.text, self.config, options)
        found: dict[str, np.ndarray] = {}
        for chosen, (count, length) in self._shapes(rows.lengths):
            batch = rows.batch(chosen, length, count)
            search = self._best_spans(options.max_answer_length)
            best = search(self._params, registered.params, batch)
            for name, value in best.items():
                values = np.asarray(value)
                found.setdefault(name, np.zeros(len(rows.lengths), values.dtype))
                found[name][chosen] = values[: len(chosen)]
        answers_of = best_answers(rows, found, may_be_none)
        return answers_of[0] if single else answers_of

    def tag(self, words: Sequence[Any], head: str | None = None, *, truncate: bool = False) -> Any:
        """(word, label) of every word of a sentence.

        Args:
            words: of one sentence, as the data had them that the head was trained on; or a list of
                such lists, for a list of results.
            head: of task=token_classification; its name may be left out where there is one head.
            truncate: words that do not fit are left out of the result.

        Raises:
            KeyError: there is no such head.
            ValueError: it has no label names, or a sentence is too long or empty.
        """
        registered = self._head(head)
        labels = registered.labels
        if labels is None or registered.regression:
            raise ValueError("tag needs a head that task=token_classification trained")
        if isinstance(words, str) or not words:
            raise ValueError(f"words={words!r}: give the list of a sentence's words")
        single = isinstance(words[0], str)
        sentences: Sequence[Sequence[str]] = [words] if single else words
        longest = min(self.max_positions)
        rows, places = [], []
        for number, sentence in enumerate(sentences):
            if isinstance(sentence, str) or not sentence:
                raise ValueError(f"sentence {number} is {sentence!r}: give the list of its words")
            row, of_words = encode_words(self.text, self.config, sentence, longest)
            if len(of_words) < len(sentence) and not truncate:
                which = "" if single else f" of sentence {number}"
                raise ValueError(
                    f"{len(sentence)} words{which} take more than {longest} tokens; give fewer at "
                    "once"
                )
            rows.append(row)
            places.append(of_words)
        pad = self.config.pad_token_id
        classes_of: list[np.ndarray] = [np.zeros(0, int)] * len(rows)
        for chosen, (count, length) in self._shapes([len(row) for row in rows]):
            ids = [
                pad_rows([np.roll(rows[i], shift) for i in chosen], pad, length, count)
                for shift in (0, 1)  # the source, and what the decoder reads
            ]
            logits = self._token_logits(
                self.model, self._params, registered.params, *ids, at_ends=False
            )
            found = np.asarray(logits.argmax(-1))
            for position, i in enumerate(chosen):
                classes_of[i] = found[position, places[i]]
        tagged = [
            [(word, labels[c]) for word, c in zip(sentence, classes, strict=False)]
            for sentence, classes in zip(sentences, classes_of, strict=True)
        ]
        return tagged[0] if single else tagged

    def _shapes(self, lengths: Any) -> list[tuple[np.ndarray, tuple[int, int]]]:
        """Batches of rows of these lengths, and the shapes to pad them to."""
        buckets = buckets_up_to(min(self.max_positions), BUCKETS)
        return plan_shapes(lengths, max_tokens=self._features_max_tokens, buckets=buckets)

    def _best_spans(self, longest: int) -> Any:
        """The compiled search for answers of at most so many tokens."""
        key = self.model, longest
        if key not in self._searches:

            def search(params: Any, head: Any, batch: Any) -> dict[str, jax.Array]:
                return best_spans(span_logits(key[0], params, head, batch), longest)

            self._searches[key] = jax.jit(search)
        return self._searches[key]

    def _trained_classes(self, name: str, texts: list[Any]) -> list[Any]:
        registered = self.heads[name]
        probabilities = np.exp(self.predict(name, self.encode(texts, truncate=True)))
        labels: Sequence[Any] = registered.labels or range(registered.module.num_classes)
        if registered.multi_label:
            return [
                [
                    (labels[i], float(row[i]))
                    for i in np.argsort(-row, kind="stable")
                    if row[i] > 0.5
                ]
                for row in probabilities
            ]
        return [(labels[int(row.argmax())], float(row.max())) for row in probabilities]

    def _entailment(
        self, name: str, texts: list[Any], claims: Sequence[str], no_separator: bool
    ) -> np.ndarray:
        """Logits [N, L, C] of every text with every claim; only the text is cut to fit."""
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"with labels a text is a string; input {number} is {text!r}")
        eos = self.config.eos_token_id
        separator = [] if no_separator else [eos]
        sources, endings = self.text.encode_batch(texts), self.text.encode_batch(list(claims))
        around = 3 + len(separator)
        rows = []
        room = min(self.max_positions) - around - max(map(len, endings))
        self.rows_cut += sum(len(source) > room for source in sources)
        for source in sources:
            for ending in endings:
                room = max(min(self.max_positions) - around - len(ending), 0)
                parts = [source[:room], ending]
                rows.append(frame(parts, self.config.bos_token_id, eos, separator))
        logits = np.asarray(self.predict(name, rows, return_logits=True))
        return logits.reshape(len(texts), len(claims), -1)
