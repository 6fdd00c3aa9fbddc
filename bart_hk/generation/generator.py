"""From lists of ids to lists of hypotheses: planned batches, compiled programs, results in order.

Shapes: B batch, W beam width, V vocabulary, S source length, T target length.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from bart_hk.data.batching import buckets_up_to, pad_rows
from bart_hk.generation import search
from bart_hk.generation.lists import (
    BATCH_SIZE,
    MAX_TOKENS,
    Hypothesis,
    checked_rows,
    hypothesis,
    plan,
)
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.search import Limits, Rules, State
from bart_hk.model import BART, Ensemble

# Room for target tokens is made in stages, so that a short output never pays for a long cache.
STAGES = (32, 64, 128, 256, 512, 1024)


class Generator:
    """Generates with a network or an ensemble, and keeps what it has compiled.

    Shapes come from short lists: sources from `bart_hk.data.batching.LENGTH_BUCKETS`, room for
    targets from `STAGES`, rows of a batch from `plan_shapes`. Only those, the beam width,
    `no_repeat_ngram_size` and whether there is a temperature lead to another compilation; every
    other option is an argument of the compiled program.
    """

    def __init__(self, bart: BART | Ensemble) -> None:
        self.bart: Any = bart  # the two have the same methods
        self._stepping: tuple[list[jax.Array], Any] = ([], {})
        self._for_steps = jax.jit(bart.for_steps)
        self._begin = jax.jit(self._encode_and_begin, static_argnames=("beam", "length"))
        self._grow = jax.jit(self._grow_to, static_argnames=("beam", "length"))
        self._search = jax.jit(self._run, static_argnames="rules", donate_argnames="state")

    def generate(
        self,
        params: Any,
        rows: Sequence[np.ndarray],
        options: GenerationOptions,
        *,
        max_tokens: int = MAX_TOKENS,
        batch_size: int = BATCH_SIZE,
        attention: bool = True,
        progress: bool = False,
    ) -> list[list[Hypothesis]]:
        """The hypotheses of each source, best first; entry i belongs to `rows[i]`.

        A row's result does not depend on the rows around it. Hypotheses of exactly equal score keep
        the order in which they ended. There are `options.beam` of them (at most V - 1), or fewer
        where the options leave fewer to be found.

        Args:
            params: of `bart`; of an ensemble those of each member.
            rows: int arrays [S_i] of source ids, with their `<s>` and `</s>`, without padding.
            options: of the search.
            max_tokens: bound on the padded source tokens of a batch.
            batch_size: bound on the rows of a batch.
            attention: False leaves "attention" empty: long lists then take less memory.
            progress: show a progress bar.

        Returns:
            Per source a list of fairseq's dictionaries. Of a hypothesis of N tokens, with `</s>`
            and without the decoder's start token:
            "tokens": int32 [N];
            "score": float32, the sum of the positional scores over N ** lenpen;
            "positional_scores": float32 [N], log probabilities;
            "attention": float32 [S_i, N], the last layer's attention to the source, averaged over
            its heads;
            "alignment": an empty array, as in fairseq unless alignments are asked for.

        Raises:
            ValueError: a source is empty, too long or holds an id outside the vocabulary, or the
                options leave it no possible length (`GenerationOptions.length_limits`).
        """
        config = self.bart.config
        sources = checked_rows("input", rows, config.max_source_positions, config.vocab_size)
        lengths = [len(row) for row in sources]
        min_len, max_len = options.length_limits(lengths, config.max_target_positions)
        if options.unkpen and config.unk_token_id is None:
            raise ValueError(f"unkpen={options.unkpen} has no meaning: this model has no <unk>")
        rules = Rules(
            beam=min(options.beam, config.vocab_size - 1),
            eos=config.eos_token_id,
            pad=config.pad_token_id,
            unk=config.unk_token_id,
            forced=config.forced_bos_token_id,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            tempered=options.temperature != 1.0 and not isinstance(self.bart, Ensemble),
        )
        results: list[list[Hypothesis]] = [[]] * len(sources)
        planned = plan(lengths, config.max_source_positions, max_tokens, batch_size)
        with tqdm(total=len(sources), disable=not progress, unit="input") as bar:
            for batch, (count, width) in planned:
                src_tokens = pad_rows([sources[i] for i in batch], rules.pad, width, count)
                room = (0, count - len(batch))
                limits = Limits(
                    min_len=np.pad(min_len[batch], room),
                    max_len=np.pad(max_len[batch], room),
                    temperature=np.asarray(options.temperature, np.float32),
                    unkpen=np.asarray(options.unkpen, np.float32),
                    free_eos=np.asarray(options.match_source_len),
                )
                state = self._search_batch(params, src_tokens, len(batch), limits, rules)
                state = state._replace(cache=None)
                if not attention:
                    state = state._replace(attention=None)
                state = jax.device_get(state)
                for row, i in enumerate(batch):
                    found = search.read_out(state, row, lengths[i], rules.eos)
                    results[i] = _hypotheses(found, options)
                bar.update(len(batch))
        return results

    def _step_params(self, params: Any) -> Any:
        """`params` for the steps of a search, kept for as long as the same arrays come."""
        leaves = jax.tree.leaves(params)
        known, _ = self._stepping
        if len(known) != len(leaves) or any(a is not b for a, b in zip(known, leaves, strict=True)):
            self._stepping = (leaves, self._for_steps(params))
        return self._stepping[1]

    def _search_batch(
        self, params: Any, src_tokens: np.ndarray, real_rows: int, limits: Limits, rules: Rules
    ) -> State:
        """The finished search of one batch, of which the first `real_rows` are not padding."""
        stages = buckets_up_to(self.bart.config.max_target_positions, STAGES)
        steps = int(limits.max_len.max()) + 1
        real = np.arange(len(src_tokens)) < real_rows
        state = self._begin(params, src_tokens, real, beam=rules.beam, length=stages[0])
        step_params = self._step_params(params)
        state = self._search(step_params, state, limits, rules=rules)
        for room, length in zip(stages, stages[1:], strict=False):
            if room >= steps or bool(state.done.all()):
                break
            state = self._grow(state, beam=rules.beam, length=length)
            state = self._search(step_params, state, limits, rules=rules)
        return state

    # The methods below are compiled.

    def _encode_and_begin(
        self, params: Any, src_tokens: jax.Array, real: jax.Array, beam: int, length: int
    ) -> State:
        cache = self.bart.start(params, self.bart.encode(params, src_tokens), beam, length)
        start = self.bart.config.decoder_start_token_id
        return search.begin(real, src_tokens.shape[1], length, cache, beam, start)

    def _grow_to(self, state: State, beam: int, length: int) -> State:
        return search.grow(state, length, self.bart.extend(state.cache, beam, length))

    def _run(self, params: Any, state: State, limits: Limits, rules: Rules) -> State:
        def decode(
            tokens: jax.Array, step: jax.Array, cache: Any, ancestors: jax.Array
        ) -> tuple[jax.Array, Any, jax.Array]:
            arguments = (params, tokens, step, cache, ancestors)
            if isinstance(self.bart, Ensemble):  # each member's probabilities are tempered
                return self.bart.step(*arguments, limits.temperature)
            return self.bart.step(*arguments)

        return search.run(state, decode, limits, rules)


def _hypotheses(found: list[search.Ended], options: GenerationOptions) -> list[Hypothesis]:
    """fairseq's hypotheses, best first."""
    lengths = np.array([len(ended.tokens) for ended in found], np.float64)
    totals = np.array([ended.scores[-1] for ended in found], np.float32)
    divisors = np.ones_like(lengths) if options.unnormalized else lengths**options.lenpen
    scores = totals / divisors.astype(np.float32)
    return [
        hypothesis(
            found[i].tokens,
            scores[i],
            np.diff(found[i].scores, prepend=np.float32(0)),
            found[i].attention,
        )
        for i in np.argsort(-scores, kind="stable")
    ]
