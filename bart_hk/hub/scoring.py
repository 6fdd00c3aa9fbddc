"""How probable texts are, and what stands behind a `<mask>`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_hk.hub.arrays import with_arrays
from bart_hk.hub.generating import GeneratingBART
from bart_hk.text.framing import frame


class ScoringBART(GeneratingBART):
    """A loaded BART that scores texts and fills masks."""

    def score(
        self,
        sentences: Any,
        targets: Any = None,
        replace_newline_with_eos: bool = False,
        verbose: bool = False,
        *,
        skip_invalid_size_inputs: bool = False,
        attention: bool = True,
    ) -> Any:
        """How probable the model finds each target, given its source.

        Args:
            sentences: the sources: a string for one result, or a list of strings (or of arrays of
                ids).
            targets: one for each source, of the same kinds; a list for a single string scores them
                all. None is fairseq's form of this method: the texts themselves, that is how well
                they are reconstructed. (True or False is fairseq's second argument.)
            replace_newline_with_eos: encode each line on its own, one after the other.
            verbose: log source and scores.
            skip_invalid_size_inputs: give None where source or target is too long, not an error.
            attention: False leaves out the attention, which takes memory.

        Returns:
            A dictionary as `generate`'s hypotheses, or a list of them: "score" is the mean of the
            "positional_scores", the log probabilities (base e) of all of the target's tokens, with
            its `<s>` and `</s>`.

        Raises:
            TypeError: something else than texts and ids.
            ValueError: a text is too long, or there are not as many targets as sources.
        """
        if isinstance(targets, bool):
            targets, replace_newline_with_eos = None, targets
        if isinstance(sentences, str):
            several = targets is not None and not isinstance(targets, str)
            given = [sentences] * (len(targets) if several else 1)
            wanted = targets if several or targets is None else [targets]
            found = self.score(
                given,
                wanted,
                replace_newline_with_eos,
                verbose,
                skip_invalid_size_inputs=skip_invalid_size_inputs,
                attention=attention,
            )
            return found if several else found[0]

        two_vocabularies = bool(self.config.source_encoder_layers)
        if targets is None:
            self._check_one_vocabulary("score without targets")

        def ids(text: Any, of_target: bool) -> np.ndarray:
            if not isinstance(text, str | tuple):
                return np.asarray(text)
            if of_target and two_vocabularies and isinstance(text, str):
                return np.append(self.encode_prefix(text), self.config.eos_token_id)
            if replace_newline_with_eos and isinstance(text, str):
                return np.concatenate([self.encode(line) for line in text.splitlines()])
            return self._encode_target(text) if of_target else self.encode([text])[0]

        def rows(given: Any, of_target: bool = False) -> list[np.ndarray]:
            if not np.iterable(given):
                raise TypeError(f"score takes texts, or arrays of ids, not {given!r:.80}")
            is_matrix = hasattr(given, "ndim") and given.ndim == 2  # padded
            each = given if is_matrix else [ids(text, of_target) for text in given]
            return self._rows(each, of_target).rows

        sources = rows(sentences)
        kept = self._fitting(sources, skip_invalid_size_inputs)
        wanted_ids = sources if targets is None else rows(targets, of_target=True)
        if len(wanted_ids) != len(sources):
            raise ValueError(f"{len(sources)} sources do not go with {len(wanted_ids)} targets")
        if skip_invalid_size_inputs:
            longest = self.config.max_target_positions
            kept = [i for i in kept if len(wanted_ids[i]) <= longest]
        found = self._engine.scorer.score(
            self._generating_params,
            [sources[i] for i in kept],
            [wanted_ids[i] for i in kept],
            attention=attention,
            **self._batch_limits(),
        )
        results: list[Any] = [None] * len(sources)
        for i, hypothesis in zip(kept, found, strict=True):
            results[i] = with_arrays(hypothesis)
        if verbose:
            for i in kept:
                self._log(sources[i], [results[i]])
        return results

    def perplexity(self, sentences: Any, targets: Any = None) -> Any:
        """exp of the mean negative log probability of a target's tokens, given its source.

        The mean is over all of the target's tokens as `score` has them, with its `<s>` and `</s>`,
        and 1 is the least. Without targets it is that of a text given itself, which a denoising
        model finds easy: to compare texts, give targets. A decoder_only model has no source: it is
        the text's own.

        Args:
            sentences, targets: as for `score`.

        Returns:
            A float for a string, else a list of floats.
        """
        found = self.score(sentences, targets, attention=False)
        if isinstance(found, dict):
            return math.exp(-float(found["score"]))
        return [math.exp(-float(hypothesis["score"])) for hypothesis in found]

    def fill_mask(
        self,
        masked_inputs: Any,
        topk: int = 5,
        match_source_len: bool = True,
        *,
        exact: bool = False,
        candidates: Sequence[Any] | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Completions of texts with `<mask>`: [(text, score), ...], best first.

        The whole sentence is generated anew, with as many tokens as the input has where
        `match_source_len` is set, and the score is the mean log probability of its tokens.

        Exactly instead of by a search, for texts with a single `<mask>`, in one pass:

        * `exact=True`: the score is the probability that the model gives to this one token in place
          of the mask, given the source and the text on its left. It knows what is on the right
          through the source alone, so a mask that stands for more words shows its first piece. An
          encoder_only model, which predicts tokens in place, knows no other way.
          Over all tokens the probabilities sum to 1; special symbols are left out.
        * `candidates=["good", "very bad"]`: each is filled in, of whatever length, and the whole
          texts are scored. The score is a text's share of the probability of all of them: they sum
          to 1. What has more tokens has less probability, other things being equal; `score` gives
          the log probabilities of single tokens.

        Args:
            masked_inputs: a list of texts for a list of lists; or one text for one list.
            topk: how many completions.
            match_source_len: of a search.
            exact, candidates: see above. Candidates are for all texts, or a list of lists has some
                for each.
            **generate_kwargs: of a search: `generate`'s; the beam is at least `topk`.

        Raises:
            TypeError: an input is no text.
            ValueError: it has no `<mask>`, or more than can be filled in exactly.
        """
        if isinstance(masked_inputs, str):
            return self.fill_mask(
                [masked_inputs],
                topk,
                match_source_len,
                exact=exact,
                candidates=candidates,
                **generate_kwargs,
            )[0]
        masked_inputs = list(masked_inputs) if np.iterable(masked_inputs) else [masked_inputs]
        self.config.require("encoder", "filling a mask")
        self._check_one_vocabulary("fill_mask")
        exact = exact or ("decoder" not in self.config.sides and candidates is None)
        if not isinstance(topk, int | np.integer) or isinstance(topk, bool) or topk < 1:
            raise ValueError(f"topk must be a number of completions, at least 1, not {topk!r}")
        if exact and candidates is not None:
            raise ValueError(
                "exact=True ranks all single tokens, candidates= those texts alone; give one of "
                "them"
            )
        masked = [self._around_masks(text, number) for number, text in enumerate(masked_inputs)]
        if exact or candidates is not None:
            if generate_kwargs:
                raise TypeError(
                    f"{', '.join(generate_kwargs)}: options of a search, and filling a mask "
                    "exactly takes none"
                )
            for number, spans in enumerate(masked):
                if len(spans) > 2:
                    raise ValueError(
                        f"input {number} has {len(spans) - 1} <mask> tokens; exactly one can be "
                        "filled in exactly, a search fills several"
                    )
            if candidates is None:
                return self._most_probable_tokens(masked, topk)
            return self._best_candidates(masked_inputs, masked, candidates, topk)
        rows = [self._masked_row(spans) for spans in masked]
        beam = max(topk, generate_kwargs.pop("beam", -1))
        results = self.generate(
            rows, beam=beam, match_source_len=match_source_len, attention=False, **generate_kwargs
        )
        return [
            [(self.decode(h["tokens"]), h["score"]) for h in found[:topk]] if found else None
            for found in results
        ]

    def _around_masks(self, text: str, number: int) -> list[list[int]]:
        """The ids of what stands before, between and behind the masks of a text."""
        if self.text.mask_id is None:
            raise ValueError("the vocabulary has no <mask>; this model cannot fill one")
        if not isinstance(text, str):
            raise TypeError(f"input {number} is {text!r:.80}; give a text with <mask>")
        if "<mask>" not in text:
            raise ValueError(f"input {number}: please add one <mask> token for the input")
        return self.text.encode_batch([span.rstrip() for span in text.split("<mask>")])

    def _masked_row(self, spans: Sequence[Sequence[int]]) -> np.ndarray:
        ids, mask = list(spans[0]), self.text.mask_id
        assert mask is not None
        for span in spans[1:]:
            ids += [mask, *span]
        return frame([ids], self.config.bos_token_id, self.config.eos_token_id)

    def _most_probable_tokens(
        self, masked: Sequence[Sequence[list[int]]], topk: int
    ) -> list[list[tuple[str, float]]]:
        config = self.config
        special = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
        special |= {config.decoder_start_token_id, self.text.mask_id or config.pad_token_id}
        start = self.encode_prefix().tolist()
        if "decoder" not in config.sides:  # the prefix is that of the row below
            start = [config.bos_token_id]
        rows = [self._masked_row(spans) for spans in masked]
        self._fitting(self._rows(rows).rows, skip=False)
        found = self._engine.scorer.next_tokens(
            self._generating_params,
            rows,
            [np.array([*start, *left], np.int32) for left, _ in masked],
            topk + len(special),
            **self._batch_limits(),
        )
        results = []
        for (left, right), (ids, log_probs) in zip(masked, found, strict=True):
            filled = [
                (self.decode([*start, *left, token, *right]), math.exp(log_prob))
                for token, log_prob in zip(ids.tolist(), log_probs.tolist(), strict=True)
                if token not in special
            ]
            results.append(filled[:topk])
        return results

    def _best_candidates(
        self,
        texts: Sequence[str],
        masked: Sequence[Sequence[list[int]]],
        candidates: Sequence[Any],
        topk: int,
    ) -> list[list[tuple[str, float]]]:
        if isinstance(candidates, str):
            raise TypeError(f"candidates are a list of texts, such as [{candidates!r}]")
        shared = all(isinstance(candidate, str) for candidate in candidates)
        each = [candidates] * len(texts) if shared else list(candidates)
        if len(each) != len(texts):
            raise ValueError(f"candidates for {len(each)} texts do not go with {len(texts)} texts")
        for number, those in enumerate(each):
            if isinstance(those, str) or not len(those):
                raise ValueError(f"input {number} needs at least one candidate, in a list")
        filled = [
            [text.replace("<mask>", candidate) for candidate in those]
            for text, those in zip(texts, each, strict=True)
        ]
        rows = [self._masked_row(spans) for spans in masked]
        scored = iter(
            self.score(
                [row for row, those in zip(rows, filled, strict=True) for _ in those],
                [text for those in filled for text in those],
                attention=False,
            )
        )
        results = []
        for those in filled:
            totals = np.array([next(scored)["positional_scores"].sum() for _ in those], np.float64)
            shares = np.exp(totals - totals.max())
            shares /= shares.sum()
            best = np.argsort(-shares, kind="stable")[:topk]
            results.append([(those[i], float(shares[i])) for i in best])
        return results
