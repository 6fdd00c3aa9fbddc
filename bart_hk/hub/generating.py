"""Texts from texts: the searches of `bart_hk.generation` behind the methods of fairseq's hub."""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bart_hk.generation import alignment
from bart_hk.generation.lists import check_bounds, numbering
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.presets import options_of
from bart_hk.generation.stops import Stops
from bart_hk.generation.trie import Trie
from bart_hk.hub.arrays import with_arrays
from bart_hk.hub.attention import AttentiveBART
from bart_hk.hub.streaming import text_pieces
from bart_hk.hub.texts import as_texts
from bart_hk.text.gpt2_bpe import GPT2BPE
from bart_hk.text.sentencepiece import SentencePieceBPE

logger = logging.getLogger(__name__)

# Decoders whose text only grows; any other may still change what it made of the last words.
_GROWING = (GPT2BPE, SentencePieceBPE)
_HELD_WORDS = 2

# What fairseq hands to a search through `inference_step_args`.
_STEP_ARGUMENTS = ("prefix_tokens", "constraints")


class GeneratingBART(AttentiveBART):
    """A loaded BART that generates."""

    def __init__(
        self,
        *args: Any,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        """See `bart_hk.load` for the bounds of a batch, `TextBART` for the rest."""
        super().__init__(*args, **kwargs)
        check_bounds(*(1 if bound is None else bound for bound in (max_tokens, batch_size)))
        self._max_tokens, self._batch_size = max_tokens, batch_size
        # A table takes a fifth of a second, and a list may come in parts.
        self._last_stops: tuple[tuple[str, ...], Stops] | None = None

    def _batch_limits(
        self, max_tokens: int | None = None, batch_size: int | None = None
    ) -> dict[str, int]:
        """Those bounds of a batch that were given, here or when loading."""
        limits = {
            "max_tokens": self._max_tokens if max_tokens is None else max_tokens,
            "batch_size": self._batch_size if batch_size is None else batch_size,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}

    @property
    def generation_config(self) -> dict[str, Any]:
        """What the model's own `generation_config.json` asks of a search, as options of ours:
        `bart.sample(texts, **bart.generation_config)` searches as transformers does by default.

        Empty where it asks for nothing. No method uses it without being told to.

        Raises:
            ValueError: it asks for something that there is no option for.
        """
        asked = self.extras.get("generation_config")
        return options_of(asked) if asked else {}

    def generate(
        self,
        tokenized_sentences: Any,
        beam: int = 5,
        verbose: bool = False,
        skip_invalid_size_inputs: bool = False,
        inference_step_args: Mapping[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
        *,
        prefix_tokens: Any = None,
        constraints: Any = None,
        ordered: bool = False,
        lm: Any = None,
        logits_processor: Any = None,
        stop_strings: str | Sequence[str] | None = None,
        encoder_out: Any = None,
        draw_numbers: Sequence[int] | None = None,
        attention: bool = True,
        progress: bool = False,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The hypotheses for each row of ids, best first.

        Args:
            tokenized_sentences: a list of arrays of ids or a padded [B, S]; one array [S] gives one
                list.
            beam: how many are searched.
            verbose: log the source and the hypotheses.
            skip_invalid_size_inputs: give None for a row that is too long instead of an error.
            inference_step_args: fairseq's way to give "prefix_tokens" and "constraints".
            prefix_allowed_tokens_fn: (number of the row, ids so far with the decoder's start token)
                -> the ids that may follow; a `bart_hk.generation.trie.Trie` runs on the device.
            prefix_tokens: ids that a row's hypotheses begin with, `<s>` included: a list of arrays
                or a padded [B, P], one row for each source, or a single [P] for all of them.
            constraints: phrases that must come up, for each row a list of arrays of ids; or
                fairseq's packed [B, N].
            ordered: they must come up in the given order.
            lm: (tokens int32 [N, T], length) -> log probabilities float32 [N, V] of the token after
                the first `length`; added to the model's, times `lm_weight` (shallow fusion).
            logits_processor: (tokens, length, scores float32 [N, V]) -> scores [N, V], see
                `bart_hk.generation.generator.Generator.generate`.
            stop_strings: a text that holds one of them ends there, with the token that completes
                it; the forced beginning does not count.
            encoder_out: of `model.encode`, for these rows in this order, instead of encoding them.
            draw_numbers: of each row, what tells its draws from those of equal rows; by default how
                many equal rows came before it. A list that is given in parts needs them.
            attention: False leaves out the hypotheses' attention, which takes time.
            progress: show a progress bar.
            max_tokens, batch_size: bounds of a batch; by default those given to `load`.
            **kwargs: `bart_hk.generation.options.GenerationOptions`.

        Returns:
            Per row a list of dictionaries: "tokens" (beginning with the forced `<s>`, ending with
            `</s>` or a stop string), "score", "positional_scores", "attention" [S, T], "alignment".

        Raises:
            ValueError: a row is too long or empty, an id is outside the vocabulary, or options or
                what is given for the rows do not fit together or leave no possible output.
            TypeError: there is no such option.

        Warns:
            NothingFoundWarning: the list of a row is empty, as nothing that was allowed ended.
        """
        given = self._step_arguments(inference_step_args, prefix_tokens, constraints)
        single = _is_single(tokenized_sentences)
        rows = self._rows(tokenized_sentences).rows
        kept = self._fitting(rows, skip_invalid_size_inputs and encoder_out is None)
        if draw_numbers is not None and len(draw_numbers) != len(rows):
            raise ValueError(f"{len(draw_numbers)} draw_numbers do not go with {len(rows)} inputs")
        function = prefix_allowed_tokens_fn
        if function is not None and not isinstance(function, Trie) and len(kept) < len(rows):
            # It counts the rows as the caller does.
            function = lambda row, ids: prefix_allowed_tokens_fn(kept[row], ids)  # noqa: E731
        # Where rows are skipped, what is said of the others counts them all, as the caller does.
        with numbering(kept) if len(kept) < len(rows) else contextlib.nullcontext():
            found = iter(
                self._engine.generator.generate(
                    self._generating_params,
                    [rows[i] for i in kept],
                    self._options(beam, given["constraints"], ordered, kwargs),
                    prefix_tokens=_prefixes(given["prefix_tokens"], len(rows), kept),
                    constraints=_constraints(given["constraints"], single, len(rows), kept),
                    prefix_allowed_tokens_fn=function,
                    lm=lm,
                    logits_processor=logits_processor,
                    stops=self._stops(stop_strings),
                    encoder_out=encoder_out,
                    draw_numbers=None if draw_numbers is None else [draw_numbers[i] for i in kept],
                    attention=attention,
                    progress=progress,
                    **self._batch_limits(max_tokens, batch_size),
                )
            )
        results: list[Any] = [None] * len(rows)
        for i in kept:
            results[i] = [with_arrays(hypothesis) for hypothesis in next(found)]
        if verbose:
            for row, hypotheses in zip(rows, results, strict=True):
                self._log(row, hypotheses)
        return results[0] if single else results

    def sample(
        self,
        sentences: Any,
        beam: int = 1,
        verbose: bool = False,
        *,
        prefix_tokens: Any = None,
        constraints: Any = None,
        replace_unk: bool | Mapping[str, str] = False,
        **kwargs: Any,
    ) -> Any:
        """The best hypothesis for each text, as text; a string for a string.

        The other arguments are `generate`'s. An input that is skipped, or for which nothing is
        found, gives None.

        Args:
            sentences: a string or a list of strings (tuples of strings for several sentences).
            beam: hypotheses that are searched; with `sampling=True`, samples that are drawn.
            prefix_tokens: what the texts begin with: one string for all of them or one for each, or
                ids as for `generate`.
            constraints: phrases that must come up: for a string a list of strings, for a list a
                list of them for each text. A word within a text needs its leading space, " word".
                Ids do as well.
            replace_unk: write what is aligned with an `<unk>` in its place; a mapping says what to
                write for words of the source.
            **kwargs: with `nbest` of 2 and more, a list of so many texts for each input.
        """
        if isinstance(sentences, str):
            wrapped = None if constraints is None else [constraints]
            return self.sample(
                [sentences],
                beam,
                verbose,
                prefix_tokens=prefix_tokens,
                constraints=wrapped,
                replace_unk=replace_unk,
                **kwargs,
            )[0]
        if not isinstance(sentences, list | tuple):
            kind = type(sentences).__name__
            raise TypeError(
                f"sample takes a text or a list of them, not a {kind}: {sentences!r:.80}"
            )
        sentences = list(sentences)
        if kwargs.get("print_alignment") and not verbose:
            raise ValueError(
                f"print_alignment={kwargs['print_alignment']!r} has no meaning in sample, which "
                "gives texts, unless verbose=True logs it; generate gives alignments"
            )
        if replace_unk is not False:
            if kwargs.setdefault("print_alignment", "hard") != "hard":
                raise ValueError("replace_unk needs hard alignments, not print_alignment='soft'")
        results = self.generate(
            self.encode(sentences),
            beam,
            verbose,
            prefix_tokens=self._prefix_ids(prefix_tokens),
            constraints=self._phrases(constraints),
            **{"attention": False, **kwargs},
        )

        def text(number: int, hypothesis: Mapping[str, Any]) -> Any:
            source = None if replace_unk is False else sentences[number]
            words = None if isinstance(replace_unk, bool) else replace_unk
            return self.written(hypothesis, source, words)[0]

        best = slice(None if kwargs.get("nbest", 0) > 1 else 1)
        texts = [found and [text(i, h) for h in found[best]] for i, found in enumerate(results)]
        return texts if best.stop is None else [found[0] if found else None for found in texts]

    def written(
        self,
        hypothesis: Mapping[str, Any],
        source: Any = None,
        words: Mapping[str, str] | None = None,
    ) -> tuple[Any, list[str]]:
        """What a hypothesis says: its text, and its symbols without `<s>` and `</s>`.

        Args:
            hypothesis: of `generate`.
            source: the text that was encoded, or a tuple of several. With it, and with
                `print_alignment="hard"`, what is aligned with an `<unk>` is written in its place.
            words: what to write for words of the source, if not the word itself.
        """
        dictionary, of_sources = self.text.dictionary, self.text.for_sources
        ends = (dictionary.eos_word, dictionary.pad_word)
        symbols = [dictionary[int(token)] for token in hypothesis["tokens"]]
        symbols = [symbol for symbol in symbols if symbol not in ends]
        text = self.decode(hypothesis["tokens"])
        if source is not None and dictionary.unk_word in symbols:

            def translate(symbol: str) -> str:
                """A symbol, or what `words` has for its text, after the space it begins with."""
                text = of_sources.bpe.join(["a", symbol])[1:]
                word = (words or {}).get(text.strip())
                return symbol if word is None else text[: len(text) - len(text.lstrip())] + word

            symbols = alignment.replace_unk(
                symbols,
                self._symbols_read(source),
                hypothesis["alignment"],
                unk=dictionary.unk_word,
                translate=translate,
            )
            text = self.bpe.join([s for s in symbols if s != dictionary.bos_word])
        return text, [symbol for symbol in symbols if symbol != dictionary.bos_word]

    def _symbols_read(self, source: Any) -> list[str]:
        """What stands at each position of `encode(source)`, without `</s>`; the unknown as well."""
        text, config, texts = self.text.for_sources, self.config, as_texts(source)
        each = [[s for s in text.bpe.encode(one).split(" ") if s] for one in texts]
        ids, _ = self._encoded(texts, min(self.max_positions))
        read = [text.dictionary[i] for i in ids.tolist() if i != config.eos_token_id]
        begin = int(ids[0] == config.bos_token_id)
        end = len(read) - len(self.extras.get("source_suffix", []))
        cut = sum(map(len, each)) - (end - begin)
        each[0] = each[0][: len(each[0]) - cut]
        return [*read[:begin], *itertools.chain.from_iterable(each), *read[end:]]

    def translate(self, sentences: Any, beam: int = 5, verbose: bool = False, **kwargs: Any) -> Any:
        """`sample`, with a beam of 5."""
        return self.sample(sentences, beam, verbose, **kwargs)

    def stream(
        self,
        sentence: str,
        *,
        prefix_tokens: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        lm: Any = None,
        encoder_out: Any = None,
        logits_processor: Any = None,
        stop_strings: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """The text that `sample` gives, in pieces, each as soon as it is certain.

        A piece is never half a character, and nothing is taken back: joined, the pieces are
        `sample(sentence, **kwargs)`.

        Args:
            sentence: one text.
            prefix_tokens: what the text begins with: a string, or ids with `<s>`.
            prefix_allowed_tokens_fn, lm, encoder_out, logits_processor, stop_strings: as for
                `generate`.
            **kwargs: `GenerationOptions`. There is one hypothesis, so greedy search and sampling
                alone can stream.

        Raises:
            As `generate`, at once and not with the first piece.
        """
        if not isinstance(sentence, str):
            raise TypeError(f"stream takes one text, not a {type(sentence).__name__}")
        if kwargs.get("constraints") is not None or "inference_step_args" in kwargs:
            raise ValueError(
                "a stream takes no constraints, which hypotheses compete to meet; use sample"
            )
        options = self._options(kwargs.pop("beam", 1), None, False, kwargs)
        if prefix_tokens is not None:
            prefix_tokens = np.asarray(self._prefix_ids(prefix_tokens), np.int32)
        ids = self._engine.generator.stream(
            self._generating_params,
            np.asarray(self.encode(sentence)),
            options,
            prefix_tokens=prefix_tokens,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            lm=lm,
            encoder_out=encoder_out,
            logits_processor=logits_processor,
            stops=self._stops(stop_strings),
        )
        held_words = 0 if isinstance(self.bpe, _GROWING) else _HELD_WORDS
        return text_pieces(ids, self.decode, held_words)

    def encode_prefix(self, text: str = "") -> np.ndarray:
        """The ids int32 [P] of a target that goes on after `text`, for `prefix_tokens`.

        They begin as the model's targets do: with the token that it is forced to begin with, or
        with `<s>`, unless that is the decoder's start token or the model was trained without it.
        """
        config = self.config
        first = config.forced_bos_token_id
        learned = self.extras.get("prepend_bos", True)
        if first is None and learned and config.decoder_start_token_id != config.bos_token_id:
            first = config.bos_token_id
        begin = [] if first is None else [first]
        return np.array([*begin, *self.text.encode(text)], np.int32)

    # --- What a call asks for ---------------------------------------------------------------------

    def _options(
        self, beam: int, constraints: Any, ordered: bool, kwargs: Mapping[str, Any]
    ) -> GenerationOptions:
        """The model's own defaults, and what a call says."""
        asked: dict[str, Any] = {"beam": beam, **kwargs}
        if constraints is not None:
            asked["constraints"] = "ordered" if ordered else "unordered"
        elif ordered:
            raise ValueError("ordered=True says how constraints come, but there are none")
        return GenerationOptions.from_kwargs(**{**self.extras.get("generation", {}), **asked})

    def _stops(self, strings: str | Sequence[str] | None) -> Stops | None:
        if strings is None:
            return None
        if not isinstance(strings, str | list | tuple):
            raise TypeError(f"stop_strings must be a text or a list of them, not {strings!r:.80}")
        asked = (strings,) if isinstance(strings, str) else tuple(strings)
        if self._last_stops is not None and self._last_stops[0] == asked:
            return self._last_stops[1]
        spellings = self.text.spellings()[: self.config.vocab_size]
        spellings += [b""] * (self.config.vocab_size - len(spellings))
        made = Stops.of(asked, spellings, isinstance(self.bpe, SentencePieceBPE))
        self._last_stops = (asked, made)
        return made

    @staticmethod
    def _step_arguments(
        inference_step_args: Mapping[str, Any] | None, prefix_tokens: Any, constraints: Any
    ) -> dict[str, Any]:
        given = {"prefix_tokens": prefix_tokens, "constraints": constraints}
        for name, value in (inference_step_args or {}).items():
            if name not in given:
                known = " and ".join(_STEP_ARGUMENTS)
                raise ValueError(f"inference_step_args may hold {known}, not {name!r}")
            if given[name] is not None:
                raise ValueError(f"{name} is given twice, also in inference_step_args")
            given[name] = value
        if isinstance(constraints, str):
            raise ValueError(
                f"constraints={constraints!r}: constraints are the phrases themselves here, and "
                "ordered=True says that their order counts"
            )
        return given

    def _fitting(self, rows: Sequence[np.ndarray], skip: bool) -> list[int]:
        """The numbers of the rows that are not too long."""
        limits = self.config.max_source_positions, self.config.max_target_positions
        limit = limits[0]
        for number, row in enumerate(rows):
            if len(row) > limit and not skip:
                raise ValueError(
                    f"Size of sample #{number} is invalid (={len(row)}) since "
                    f"max_positions={limits}; shorten it, or pass "
                    "skip_invalid_size_inputs=True for None in its place"
                )
        return [number for number, row in enumerate(rows) if len(row) <= limit]

    def _prefix_ids(self, prefixes: Any) -> Any:
        """Texts among `prefixes` as ids."""
        if isinstance(prefixes, str):
            return self.encode_prefix(prefixes)
        if isinstance(prefixes, list | tuple):
            return [self.encode_prefix(p) if isinstance(p, str) else p for p in prefixes]
        return prefixes

    def _phrases(self, constraints: Any) -> Any:
        """Texts among the phrases of each row as ids."""
        if not isinstance(constraints, list | tuple):
            return constraints
        for number, phrases in enumerate(constraints):
            if isinstance(phrases, str):
                raise TypeError(
                    f"constraints of input {number} are a list of phrases, not a text; give "
                    f"[{phrases!r}]"
                )
        return [
            [self.text.encode(phrase) if isinstance(phrase, str) else phrase for phrase in phrases]
            for phrases in constraints
        ]

    def _log(self, row: np.ndarray, hypotheses: list[dict[str, Any]] | None) -> None:
        """fairseq's S-, H-, P- and A-lines."""
        logger.info("S\t%s", self.decode(row))
        for hypothesis in hypotheses or ():
            logger.info("H\t%s\t%s", hypothesis["score"], self.decode(hypothesis["tokens"]))
            scores = " ".join(f"{score:.4f}" for score in hypothesis["positional_scores"])
            logger.info("P\t%s", scores)
            if isinstance(hypothesis["alignment"], list):
                pairs = " ".join(f"{source}-{target}" for source, target in hypothesis["alignment"])
                logger.info("A\t%s", pairs)


def _is_single(tokens: Any) -> bool:
    return not isinstance(tokens, list | tuple) and np.ndim(tokens) == 1


def _prefixes(prefixes: Any, rows: int, kept: Sequence[int]) -> list[Any] | None:
    """One prefix for each of the rows that are kept."""
    if prefixes is None:
        return None
    is_list = isinstance(prefixes, list | tuple)
    nested = any(map(np.ndim, prefixes)) if is_list else np.ndim(prefixes) > 1
    each = list(prefixes) if nested else [np.atleast_1d(np.asarray(prefixes))] * rows
    if len(each) != rows:
        raise ValueError(f"prefix_tokens: {len(each)} prefixes do not go with {rows} inputs")
    return [np.asarray(each[i]) for i in kept]


def _constraints(constraints: Any, single: bool, rows: int, kept: Sequence[int]) -> Any:
    """The constraints of the rows that are kept."""
    if constraints is None:
        return None
    if hasattr(constraints, "ndim"):
        constraints = np.atleast_2d(np.asarray(constraints))
    elif single:
        constraints = [constraints]
    if len(constraints) != rows:
        raise ValueError(
            f"constraints for {len(constraints)} inputs do not go with {rows} inputs; give an "
            "empty list where there are none"
        )
    if isinstance(constraints, np.ndarray):
        return constraints[list(kept)]
    return [constraints[i] for i in kept]
