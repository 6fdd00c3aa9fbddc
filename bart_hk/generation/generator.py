"""From lists of ids to lists of hypotheses: planned batches, compiled programs, results in order.

Shapes: B batch, W beam width, V vocabulary, S source length, T target length.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from bart_hk.data.batching import bucket, buckets_up_to, pad_rows
from bart_hk.generation import alignment, contrastive, search, trie
from bart_hk.generation.conditions import AllowedTokens, allowed_mask
from bart_hk.generation.constraints import initial_states
from bart_hk.generation.encodings import checked_encoding, plan_encoded
from bart_hk.generation.lists import (
    BATCH_SIZE,
    MAX_TOKENS,
    Hypothesis,
    hypothesis,
    plan,
)
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.request import Request
from bart_hk.generation.state import (
    Ended,
    Extra,
    LanguageModel,
    Limits,
    LogitsProcessor,
    Rules,
    State,
    begin,
    grow,
    read_out,
)
from bart_hk.generation.stops import Stops
from bart_hk.generation.stops import start as start_stops
from bart_hk.model import BART, Ensemble

# Room for target tokens is made in stages, so that a short output never pays for a long cache; each
# is another program to compile.
STAGES = (64, 128, 256, 512, 1024)

# Bytes that an encoder layer's activations may take, and the sources' keys and values before they
# are laid out as caches. Batches that would take more, such as 8 rows of 1024 ids of a bart.large,
# are computed in groups of rows, which takes as long.
ENCODER_BYTES, START_BYTES = 1 << 29, 1 << 27


class Generator:
    """Generates with a network or an ensemble, and keeps what it has compiled.

    Shapes come from short lists: sources from `bart_hk.data.batching.LENGTH_BUCKETS`, room for
    targets from `STAGES`, rows of a batch from `plan_shapes`, the rest from powers of two. Only
    those and what `bart_hk.generation.state.Rules` holds lead to another compilation; every other
    option is an argument of the compiled program.
    """

    def __init__(self, bart: BART | Ensemble) -> None:
        self.bart: Any = bart  # the two have the same methods
        self._stepping: tuple[list[jax.Array], Any] = ([], {})
        # Apart from what follows, so that its memory is free again when caches are made.
        self._encode = jax.jit(self._encode_source)
        self._begin = jax.jit(
            self._begin_search, static_argnames=("is_restricted", "rules", "length", "has_stops")
        )
        self._grow = jax.jit(self._grow_to, static_argnames=("beam", "length"))
        self._search = jax.jit(self._run, static_argnames="rules", donate_argnames="state")

    def generate(
        self,
        params: Any,
        rows: Sequence[np.ndarray],
        options: GenerationOptions,
        *,
        prefix_tokens: Sequence[Any] | None = None,
        constraints: Any = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        lm: LanguageModel | None = None,
        logits_processor: LogitsProcessor | None = None,
        stops: Stops | None = None,
        encoder_out: Any = None,
        draw_numbers: Sequence[int] | None = None,
        max_tokens: int = MAX_TOKENS,
        batch_size: int = BATCH_SIZE,
        attention: bool = True,
        progress: bool = False,
    ) -> list[list[Hypothesis]]:
        """The hypotheses of each source, best first; entry i belongs to `rows[i]`.

        A row's result does not depend on the rows around it. Hypotheses of exactly equal score keep
        the order in which they ended. There are `options.nbest` of them, or `options.beam` (at most
        V - 1), or fewer where the options leave fewer to be found. Where they leave none, a
        `NothingFoundWarning` names the row.

        Args:
            params: of `bart`; of an ensemble those of each member.
            rows: int arrays [S_i] of source ids, with their `<s>` and `</s>`, without padding. Of a
                decoder_only model each is a text to go on after, which its hypotheses begin with (a
                last `</s>` is left out); lengths in `options` are then of what comes after it.
            options: of the search.
            prefix_tokens: int array of each row, the first generated tokens, with `<s>` where the
                model writes one, and without the decoder's start token; padding does not count. By
                default the token that the model or `options` force, if any.
            constraints: of each row the phrases that its hypotheses must hold, as int arrays; or
                fairseq's packed tensor of them. In any order unless `options.constraints` says
                "ordered".
            prefix_allowed_tokens_fn: what may come next, given the row's number and its ids so far,
                the decoder's start token first. A function makes the search stop at every token; a
                `bart_hk.generation.trie.Trie` is compiled into it. As in fairseq, a beam search
                then looks at `beam` candidates, and an ended hypothesis leaves its place empty.
            lm: a language model whose log probabilities, times `options.lm_weight`, are added to
                the decoder's: a function of int32 [N, T] tokens, the decoder's start token first,
                and of how many of them count, to float32 [N, V]. It is compiled with the search, so
                it is made of jax and pure, and the same function is compiled once.
            logits_processor: a function of the same kind that is also given the scores float32
                [N, V] of the next token, and gives others for them: logits in greedy search and
                sampling, log probabilities in ensembles and with several beams. It has the last
                word, but cannot allow what is forbidden. transformers' has no number of tokens.
            stops: strings that end a hypothesis: with the token that completes one, without `</s>`,
                and whatever `min_len` says; forced tokens end nothing.
            encoder_out: what `bart.encode` gives for the rows, padded to one length (of an ensemble
                for each member); then nothing is encoded here.
            draw_numbers: of each row, what tells its draws from those of equal rows; by default how
                many equal rows came before it. A list that is given in parts needs them.
            max_tokens: bound on the padded source tokens of a batch.
            batch_size: bound on the rows of a batch.
            attention: False leaves "attention" empty: long lists then take less memory.
            progress: show a progress bar.

        Returns:
            Per source a list of fairseq's dictionaries. Of a hypothesis of N tokens, with `</s>`
            and without the decoder's start token:
            "tokens": int32 [N];
            "score": float32, the sum of the positional scores over N ** lenpen;
            "positional_scores": float32 [N], log probabilities, with what diversity and language
            model add to them;
            "attention": float32 [S_i, N], the last layer's attention to the source, averaged over
            its heads;
            "alignment": `bart_hk.generation.alignment`'s, if `options.print_alignment`; else empty.

        Raises:
            ValueError: a source, a prefix or a constraint is empty, too long or holds an id outside
                the vocabulary; the options leave it no possible length
                (`GenerationOptions.length_limits`) or do not go together; there can be no output,
                as no sequence of the trie is allowed or a phrase repeats an n-gram.
        """
        request = Request.make(
            self.bart.config,
            rows,
            options,
            is_ensemble=isinstance(self.bart, Ensemble),
            prefix_tokens=prefix_tokens,
            constraints=constraints,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            lm=lm,
            logits_processor=logits_processor,
            stops=stops,
            draw_numbers=draw_numbers,
        )
        encoder_out, planned = self._planned(request, encoder_out, max_tokens, batch_size)
        with_attention = attention or options.print_alignment is not None
        results: list[list[Hypothesis]] = [[]] * len(request.sources)
        seen = [self.bart.config.attended(len(row)) for row in request.sources]
        with tqdm(total=len(request.sources), disable=not progress, unit="input") as bar:
            for batch, (count, width) in planned:
                limits = request.limits(batch, count, self.bart.config.vocab_size)
                source = self._source(request, encoder_out, batch, count, width)
                state = self._started(params, source, len(batch), limits, request.rules)
                if request.allowed is None:
                    state = self._searched(params, state, limits, request.rules)
                else:
                    for step in range(int(limits.max_len.max()) + 1):
                        state = self._one_step(params, state, limits, request, batch, step)
                        if bool(state.done.all()):
                            break
                state = state._replace(cache=None, extra=Extra())
                if not with_attention:
                    state = state._replace(attention=None)
                state = jax.device_get(state)
                for row, i in enumerate(batch):
                    found = read_out(state, row, seen[i])
                    results[i] = self._hypotheses(found, request.sources[i], options, attention)
                bar.update(len(batch))
        request.warn_of_nothing([i for i, found in enumerate(results) if not found])
        return results

    def stream(
        self,
        params: Any,
        row: np.ndarray,
        options: GenerationOptions,
        *,
        prefix_tokens: Any = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        lm: LanguageModel | None = None,
        encoder_out: Any = None,
        logits_processor: LogitsProcessor | None = None,
        stops: Stops | None = None,
    ) -> Iterator[int]:
        """The generated ids of one source, `</s>` last, each as soon as it is known.

        They are those of `generate`, whose arguments these are, for a single row.

        Raises:
            ValueError: as for `generate`; or the options ask for more than greedy search or one
                sample, whose tokens may still change.
        """
        if options.beam != 1 or options.beam_sampling or options.penalty_alpha:
            raise ValueError(
                "a stream follows one hypothesis, by greedy search or sampling: it needs beam=1 "
                f"and no other method, not beam={options.beam}"
            )
        if options.early_stopping is not True:
            raise ValueError(
                "a stream cannot look beyond an end for a better one: early_stopping must be "
                f"True, not {options.early_stopping!r}"
            )
        request = Request.make(
            self.bart.config,
            [row],
            options,
            is_ensemble=isinstance(self.bart, Ensemble),
            prefix_tokens=None if prefix_tokens is None else [prefix_tokens],
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            lm=lm,
            logits_processor=logits_processor,
            stops=stops,
        )
        encoder_out, planned = self._planned(request, encoder_out, 1, 1)
        return self._tokens(params, request, encoder_out, *planned)

    def _planned(
        self, request: Request, encoder_out: Any, max_tokens: int, batch_size: int
    ) -> tuple[Any, list[tuple[np.ndarray, tuple[int, int]]]]:
        """What was encoded, checked, and the batches: their rows, and the shape they are padded to.

        Raises:
            ValueError: the bounds are no bounds, or the encoding is of something else.
        """
        lengths = [len(row) for row in request.sources]
        if encoder_out is None:
            positions = self.bart.config.max_source_positions
            return None, plan(lengths, positions, max_tokens, batch_size)
        self.bart.config.require("encoder", "encoder_out")
        encoder_out = checked_encoding(encoder_out, lengths, self.bart)
        return encoder_out, plan_encoded(encoder_out, max_tokens, batch_size)

    def _tokens(
        self,
        params: Any,
        request: Request,
        encoder_out: Any,
        planned: tuple[np.ndarray, tuple[int, int]],
    ) -> Iterator[int]:
        batch, (count, width) = planned
        limits = request.limits(batch, count, self.bart.config.vocab_size)
        source = self._source(request, encoder_out, batch, count, width)
        state = self._started(params, source, 1, limits, request.rules)
        while True:
            state = self._one_step(params, state, limits, request, batch, int(state.step))
            if bool(state.done[0]):
                if int(state.ended[0]):
                    yield int(state.ended_token[0, 0])
                else:
                    request.warn_of_nothing([0])
                return
            yield int(state.token[0, 0])

    def _source(
        self, request: Request, encoder_out: Any, batch: np.ndarray, count: int, width: int
    ) -> Any:
        """Of one batch, filled up to `count` rows: int32 [B, S] ids, or what was encoded."""
        if encoder_out is None:
            rows = [request.sources[i] for i in batch]
            return pad_rows(rows, request.rules.pad, width, count)
        index = np.pad(batch, (0, count - len(batch)))
        return jax.tree.map(lambda x: x[index], encoder_out)

    def _step_params(self, params: Any) -> Any:
        """`params` for the steps of a search, kept for as long as the same arrays come."""
        leaves = jax.tree.leaves(params)
        known, _ = self._stepping
        if len(known) != len(leaves) or any(a is not b for a, b in zip(known, leaves, strict=True)):
            # Not compiled: a program would copy what it only hands on, a bart.large's decoder too.
            self._stepping = (leaves, self.bart.for_steps(params))
        return self._stepping[1]

    def _stages(self) -> tuple[int, ...]:
        return buckets_up_to(self.bart.config.max_target_positions, STAGES)

    def _started(
        self, params: Any, source: Any, real_rows: int, limits: Limits, rules: Rules
    ) -> State:
        """The state before the first step, in which only the first `real_rows` take part."""
        encoded = self._encode(params, source) if isinstance(source, np.ndarray) else source
        rows = len(jax.tree.leaves(source)[0])
        return self._begin(
            params,
            encoded,
            np.arange(rows) < real_rows,
            limits.constraints,
            is_restricted=limits.trie is not None,
            has_stops=limits.stops is not None,
            rules=rules.at_the_beginning,
            length=bucket(int(limits.min_len.max()) + 1, self._stages()),  # it will take that many
        )

    def _searched(
        self,
        params: Any,
        state: State,
        limits: Limits,
        rules: Rules,
        until: int | None = None,
    ) -> State:
        """The state at step `until`, or when every row is done."""
        stages = self._stages()
        steps = int(limits.max_len.max()) + 1
        steps = steps if until is None else min(until, steps)
        step_params = self._step_params(params)
        while True:
            room = state.tokens.shape[1]
            bounded = limits._replace(until=np.int32(min(steps, room)))
            state = self._search(step_params, state, bounded, rules=rules)
            if room >= steps or bool(state.done.all()):
                return state
            length = stages[stages.index(room) + 1]
            state = self._grow(state, beam=rules.beam, length=length)

    def _one_step(
        self,
        params: Any,
        state: State,
        limits: Limits,
        request: Request,
        batch: np.ndarray,
        step: int,
    ) -> State:
        """The state one step on, where a function on the host may say what is allowed in it."""
        rules, vocabulary = request.rules, self.bart.config.vocab_size
        if request.allowed is not None:
            carried = (state.tokens, state.lineage, state.token, state.score, state.done)
            tokens, lineage, token, score, done = jax.device_get(carried)
            held = np.take_along_axis(tokens, lineage.swapaxes(1, 2), 2).swapaxes(1, 2)[:, :, :step]
            held = np.concatenate([held, token[..., None]], axis=2)
            alive = (score > -np.inf) & ~done[:, None]
            # Forced tokens are nobody's choice.
            width = limits.prefix.shape[1]
            forced = step < width and limits.prefix[:, min(step, width - 1)] >= 0
            alive &= ~np.broadcast_to(forced, done.shape)[:, None]
            mask = allowed_mask(request.allowed, batch, held, alive, vocabulary)
            mask |= ~alive[..., None]
            limits = limits._replace(allowed=mask)
        return self._searched(params, state, limits, rules, until=step + 1)

    def _hypotheses(
        self,
        found: list[Ended],
        source: np.ndarray,
        options: GenerationOptions,
        attention: bool,
    ) -> list[Hypothesis]:
        """fairseq's hypotheses, best first."""
        config = self.bart.config
        lengths = np.array([len(ended.tokens) for ended in found], np.float64)
        totals = np.array([ended.scores[-1] for ended in found], np.float32)
        divisors = np.ones_like(lengths) if options.unnormalized else lengths**options.lenpen
        scores = totals / divisors.astype(np.float32)
        results = []
        for i in np.argsort(-scores, kind="stable")[: options.nbest or None]:
            tokens, weights = found[i].tokens, found[i].attention
            pairs: Any = None
            if options.print_alignment == "hard":
                ids = {"pad": config.pad_token_id, "eos": config.eos_token_id}
                pairs = alignment.hard(weights, source, tokens, **ids)
            elif options.print_alignment == "soft":
                pairs = alignment.soft(weights, source, tokens, pad=config.pad_token_id)
            each = np.diff(found[i].scores, prepend=np.float32(0))
            kept = weights if attention else None
            results.append(hypothesis(tokens, scores[i], each, kept, pairs))
        return results

    # The methods below are compiled.

    def _encode_source(self, params: Any, src_tokens: jax.Array) -> Any:
        config, (rows, width) = self.bart.config, src_tokens.shape
        # Scores of all heads, before and after the softmax; the feed-forward layer; some of [S, D].
        scores = 2 * config.encoder_attention_heads * width
        each = width * (scores + config.encoder_ffn_embed_dim + 4 * config.encoder_embed_dim)
        group = rows_at_once(rows, 4 * each, ENCODER_BYTES)
        return _in_groups(lambda ids: self.bart.source(params, ids), src_tokens, group)

    def _begin_search(
        self,
        params: Any,
        encoded: Any,
        real: jax.Array,
        constraints: Any,
        is_restricted: bool,
        rules: Rules,
        length: int,
        has_stops: bool = False,
    ) -> State:
        config, beam, batch = self.bart.config, rules.beam, real.shape[0]
        width = jax.tree.leaves(encoded)[0].shape[1]
        products = 2 * config.decoder_layers * width * config.encoder_embed_dim
        group = rows_at_once(batch, 4 * products, START_BYTES)
        cache = _in_groups(lambda x: self.bart.start(params, x, beam, length), encoded, group)
        extra = Extra()
        if rules.method == "groups":
            extra = extra._replace(overlap=jnp.zeros((batch, rules.groups, rules.groups)))
        elif rules.method == "contrastive":
            extra = contrastive.begin(batch, beam, length, config.encoder_embed_dim)
        if constraints is not None:
            extra = extra._replace(constraints=initial_states(constraints, beam))
        if is_restricted:
            extra = extra._replace(nodes=trie.start(batch, beam))
        if has_stops:
            extra = extra._replace(stops=start_stops(batch, beam))
        start = config.decoder_start_token_id
        return begin(real, width, length, cache, rules, start, extra)

    def _grow_to(self, state: State, beam: int, length: int) -> State:
        return grow(state, length, self.bart.extend(state.cache, beam, length))

    def _run(self, params: Any, state: State, limits: Limits, rules: Rules) -> State:
        def decode(
            tokens: jax.Array, step: jax.Array, cache: Any, ancestors: jax.Array
        ) -> tuple[jax.Array, Any, jax.Array, jax.Array | None]:
            arguments = (params, tokens, step, cache, ancestors)
            if isinstance(self.bart, Ensemble):  # each member's probabilities are tempered
                return *self.bart.step(*arguments, limits.temperature), None
            if rules.method == "contrastive":
                return self.bart.step(*arguments, return_features=True)
            return *self.bart.step(*arguments), None

        return search.run(state, decode, limits, rules)


def rows_at_once(rows: int, each: int, limit: int) -> int:
    """The greatest divisor of `rows` of which so many rows of `each` bytes stay within `limit`, or
    1."""
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * each <= limit))


def _in_groups(function: Callable[[Any], Any], rows: Any, group: int) -> Any:
    """`function` of arrays with a row for each input, for so many of them at a time."""
    count = len(jax.tree.leaves(rows)[0])
    if group == count:
        return function(rows)
    groups = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), rows)
    found = jax.lax.map(function, groups)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), found)
