"""`BARTHubInterface`: a loaded BART behind the methods of fairseq's hub.

Names, argument order, defaults and return shapes are fairseq's (`hub_utils.py`,
`models/bart/hub_interface.py`); results are NumPy arrays (`bart_hk.hub.arrays`). Single items and
lists are taken alike, a list's results are aligned with it, and rows of any lengths go together.
"""

import logging
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import BARTConfig
from bart_hk.generation.options import GenerationOptions
from bart_hk.hub.arrays import Array, Rows, as_array
from bart_hk.hub.features import default_max_tokens
from bart_hk.hub.loaded import LoadedBART
from bart_hk.model import Params
from bart_hk.text import Dictionary, TextEncoder
from bart_hk.text.framing import frame, truncate

logger = logging.getLogger(__name__)

_TASK_HEAD = "sentence_classification_head"  # fairseq's name for a sentence_prediction task's head


class BARTHubInterface(LoadedBART):
    """Text in, text out; features, classes, scores.

    Attributes:
        text: its `TextEncoder`; `bpe` is the part that cuts text into symbols.
        task: fairseq's `source_dictionary`, `target_dictionary` and `label_dictionary`.
    """

    def __init__(
        self,
        config: BARTConfig,
        params: Params,
        text: TextEncoder | None = None,
        heads: Mapping[str, HeadFiles] | None = None,
        *,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        """From parts; `text=None` makes a model that takes ids only. See `bart_hk.load`."""
        super().__init__(config, params, heads, **kwargs)
        self._text = text
        self._max_tokens = max_tokens
        self._generator_limits = {
            name: limit
            for name, limit in (("max_tokens", max_tokens), ("batch_size", batch_size))
            if limit is not None
        }

    def save(self, directory: str | Path, head: str | None = None) -> None:  # type: ignore[override]
        """Writes the model, its heads and its tokenizer as a directory that `load` opens.

        transformers opens it too, as BartForConditionalGeneration, or with `head` as
        BartForSequenceClassification with that head.

        Raises:
            ValueError: it is an ensemble, which is no single model.
        """
        if self._other_params:
            raise ValueError(
                f"an ensemble of {1 + len(self._other_params)} models cannot be saved as one; "
                "tools/average_checkpoints.py makes one of them"
            )

        def write_text(folder: Path) -> None:
            if self._text is not None:
                self._text.save(folder, min(self.max_positions))

        super().save(directory, head, also=write_text)

    # --- Text -------------------------------------------------------------------------------------

    @property
    def text(self) -> TextEncoder:
        if self._text is None:
            raise ValueError("this model was made without a tokenizer; it takes token ids only")
        return self._text

    @property
    def bpe(self) -> Any:
        return self.text.bpe

    @property
    def max_positions(self) -> tuple[int, int]:
        """The longest source and the longest target, in tokens."""
        return self.config.max_source_positions, self.config.max_target_positions

    @property
    def task(self) -> types.SimpleNamespace:
        labels = None
        head = self.heads.get(_TASK_HEAD) or (
            next(iter(self.heads.values())) if len(self.heads) == 1 else None
        )
        if head is not None and head.labels is not None:
            labels = Dictionary()
            for label in head.labels:
                labels.add_symbol(label)
        dictionary = self.text.dictionary
        return types.SimpleNamespace(
            source_dictionary=dictionary, target_dictionary=dictionary, label_dictionary=labels
        )

    def encode(
        self,
        sentence: Any,
        *addl_sentences: str,
        no_separator: bool = True,
        truncate: bool = False,
    ) -> Any:
        """Ids of a sentence, `<s> A </s>`, or of several, `<s> A </s> B </s>`: int32 [N].

        As in fairseq, a first sentence that is too long is cut, further ones are not (then the
        row is too long for the model). Special symbols written in the text are ordinary characters.

        Args:
            sentence: a string; or a list of strings and of tuples of strings, for a list of arrays.
            *addl_sentences: further sentences for the same row.
            no_separator: False puts a second `</s>` between sentences.
            truncate: cut the longest sentences until the row fits, keeping every `</s>`.
        """
        if isinstance(sentence, list):
            if addl_sentences:
                raise TypeError("give pairs as a list of tuples: encode([(a, b), (c, d)])")
            return [
                self.encode(*_texts(item), no_separator=no_separator, truncate=truncate)
                for item in sentence
            ]
        texts = _texts(sentence) + addl_sentences
        separator = [] if no_separator else [self.config.eos_token_id]
        parts: list[Sequence[int]] = list(self.text.encode_batch(texts))
        limit = min(self.max_positions)
        if truncate:
            parts = _fit(parts, limit, len(separator))
        else:
            parts[0] = parts[0][: limit - 2]
        config = self.config
        return as_array(frame(parts, config.bos_token_id, config.eos_token_id, separator))

    def decode(self, tokens: Any) -> Any:
        """The text of ids: a string, or where two `</s>` meet a list of strings.

        One leading `<s>` and all padding are dropped. A padded [B, N] or a list of arrays gives a
        list.
        """
        if np.ndim(tokens) != 1 if not isinstance(tokens, (list, tuple)) else _nested(tokens):
            return [self.decode(row) for row in tokens]
        config = self.config
        ids = np.asarray(tokens, np.int64)
        ids = ids[ids != config.pad_token_id]
        if len(ids) and ids[0] == config.bos_token_id:
            ids = ids[1:]
        is_eos = ids == config.eos_token_id
        pieces = np.split(ids, np.flatnonzero(is_eos[1:] & is_eos[:-1]) + 1)
        sentences = [self.text.decode(piece) for piece in pieces]
        return sentences[0] if len(sentences) == 1 else sentences

    # --- Features and classes ---------------------------------------------------------------------

    def _rows(self, tokens: Any) -> Rows:
        return Rows(tokens, self.config.pad_token_id, self.config.vocab_size)

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

    # --- Generation -------------------------------------------------------------------------------

    def generate(
        self,
        tokenized_sentences: Any,
        beam: int = 5,
        verbose: bool = False,
        skip_invalid_size_inputs: bool = False,
        inference_step_args: Mapping[str, Any] | None = None,
        *,
        attention: bool = True,
        progress: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The hypotheses for each row of ids, best first.

        Args:
            tokenized_sentences: a list of arrays of ids or a padded [B, S]; one array [S] gives one
                list.
            beam: how many are searched and returned.
            verbose: log the source and the hypotheses.
            skip_invalid_size_inputs: give None for a row that is too long instead of an error.
            inference_step_args: fairseq's; must be empty here, as prefixes are in fairseq's BART.
            attention: False leaves out the hypotheses' attention, which takes time.
            progress: show a progress bar.
            **kwargs: `bart_hk.generation.options.GenerationOptions`.

        Returns:
            Per row a list of dictionaries: "tokens" (beginning with the forced `<s>`, ending with
            `</s>`), "score", "positional_scores", "attention" [S, T], "alignment".
        """
        if inference_step_args:
            raise NotImplementedError("prefix generation not implemented for BART")
        options = GenerationOptions.from_kwargs(
            **{**self.extras.get("generation", {}), "beam": beam, **kwargs}
        )

        def search(rows: list[np.ndarray]) -> list[list[dict[str, Any]]]:
            return self._engine.generator.generate(
                self._generating_params,
                rows,
                options,
                attention=attention,
                progress=progress,
                **self._generator_limits,
            )

        return self._over_rows(tokenized_sentences, search, verbose, skip_invalid_size_inputs)

    def _over_rows(
        self, tokens: Any, search: Any, verbose: bool, skip_invalid_size_inputs: bool
    ) -> Any:
        """`search` over the rows that fit, its results aligned with all of them."""
        rows = self._rows(tokens).rows
        limit = self.config.max_source_positions
        fits = [len(row) <= limit for row in rows]
        for number, fit in enumerate(fits):
            if not fit and not skip_invalid_size_inputs:
                raise ValueError(
                    f"Size of sample #{number} is invalid (={len(rows[number])}) since "
                    f"max_positions={self.max_positions}; shorten it, or pass "
                    "skip_invalid_size_inputs=True for None in its place"
                )
        found = iter(search([row for row, fit in zip(rows, fits, strict=True) if fit]))
        results = [
            [{key: as_array(value) for key, value in h.items()} for h in next(found)]
            if fit
            else None
            for fit in fits
        ]
        if verbose:
            for row, hypotheses in zip(rows, results, strict=True):
                self._log(row, hypotheses)
        is_single = not isinstance(tokens, (list, tuple)) and np.ndim(tokens) == 1
        return results[0] if is_single else results

    def _log(self, row: np.ndarray, hypotheses: list[dict[str, Any]] | None) -> None:
        """fairseq's S-, H- and P-lines."""
        logger.info("S\t%s", self.decode(row))
        for hypothesis in hypotheses or ():
            logger.info("H\t%s\t%s", hypothesis["score"], self.decode(hypothesis["tokens"]))
            scores = " ".join(f"{score:.4f}" for score in hypothesis["positional_scores"])
            logger.info("P\t%s", scores)

    def sample(self, sentences: Any, beam: int = 1, verbose: bool = False, **kwargs: Any) -> Any:
        """The best hypothesis for each text, as text; a string for a string.

        The arguments are `generate`'s. An input that is skipped gives None.
        """
        if isinstance(sentences, str):
            return self.sample([sentences], beam=beam, verbose=verbose, **kwargs)[0]
        results = self.generate(
            self.encode(list(sentences)), beam, verbose, attention=False, **kwargs
        )
        return [self.decode(found[0]["tokens"]) if found else None for found in results]

    def translate(self, sentences: Any, beam: int = 5, verbose: bool = False, **kwargs: Any) -> Any:
        """`sample`, with a beam of 5."""
        return self.sample(sentences, beam, verbose, **kwargs)

    def score(
        self, sentences: Any, replace_newline_with_eos: bool = False, verbose: bool = False
    ) -> Any:
        """How probable the model finds it to reconstruct each text from itself.

        Args:
            sentences: a string for one result, or a list.
            replace_newline_with_eos: encode each line on its own, one after the other.
            verbose: log source and scores.

        Returns:
            A dictionary as `generate`'s hypotheses, or a list of them: "score" is the mean of the
            "positional_scores", the tokens' log-probabilities.
        """
        if isinstance(sentences, str):
            return self.score([sentences], replace_newline_with_eos, verbose)[0]

        def ids(sentence: str) -> np.ndarray:
            if replace_newline_with_eos:
                return np.concatenate([self.encode(line) for line in sentence.splitlines()])
            return self.encode(sentence)

        def search(rows: list[np.ndarray]) -> list[list[dict[str, Any]]]:
            found = self._engine.scorer.score(
                self._generating_params, rows, rows, attention=True, **self._generator_limits
            )
            return [[hypothesis] for hypothesis in found]

        rows = [ids(sentence) for sentence in sentences]
        return [found[0] for found in self._over_rows(rows, search, verbose, False)]

    def fill_mask(
        self,
        masked_inputs: Any,
        topk: int = 5,
        match_source_len: bool = True,
        **generate_kwargs: Any,
    ) -> Any:
        """Completions of texts with one or more `<mask>`: [(text, score), ...], best first.

        The whole sentence is generated anew, with as many tokens as the input has where
        `match_source_len` is set.

        Args:
            masked_inputs: a list of texts for a list of lists; or one text for one list.
            topk: how many completions.
            **generate_kwargs: `generate`'s; the beam is at least `topk`.
        """
        if isinstance(masked_inputs, str):
            return self.fill_mask([masked_inputs], topk, match_source_len, **generate_kwargs)[0]
        mask = self.text.mask_id
        if mask is None:
            raise ValueError("the vocabulary has no <mask>; this model cannot fill one")
        rows = []
        for number, text in enumerate(masked_inputs):
            if "<mask>" not in text:
                raise ValueError(f"input {number}: please add one <mask> token for the input")
            spans = self.text.encode_batch([span.rstrip() for span in text.split("<mask>")])
            ids = list(spans[0])
            for span in spans[1:]:
                ids += [mask, *span]
            rows.append(frame([ids], self.config.bos_token_id, self.config.eos_token_id))
        beam = max(topk, generate_kwargs.pop("beam", -1))
        results = self.generate(
            rows, beam=beam, match_source_len=match_source_len, attention=False, **generate_kwargs
        )
        return [
            [(self.decode(h["tokens"]), h["score"]) for h in found[:topk]] if found else None
            for found in results
        ]


def _texts(item: Any) -> tuple[str, ...]:
    return (item,) if isinstance(item, str) else tuple(item)


def _fit(parts: Sequence[Sequence[int]], limit: int, separator: int) -> list[Sequence[int]]:
    """`parts`, cut so that they fit `limit` positions with `<s>` and every `</s>`."""
    return truncate(parts, limit - 1 - len(parts) - separator * (len(parts) - 1))


def _nested(tokens: Sequence[Any]) -> bool:
    return any(np.ndim(token) for token in tokens)
