"""fairseq's search strategies, each noting how close its decisions were, with defects repaired.

The margins are conservative: where the order of a list decides anything, every two neighbours in it
count. What is repaired, beside what `repair` does for all of them:

* a row that has chosen `</s>` goes on, where a strategy gives no more candidates than there are
  beams (`DiverseBeamSearch`, `PrefixConstrainedBeamSearch`): so hypotheses have a `</s>` inside;
* candidates of probability zero count as choices of a diverse group, and they take places from
  possible ones in a lexically constrained search: which, is up to `torch.topk`;
* the same search ranks by a float32 of the score and a hundred for each bank, so scores that differ
  by more than that come before banks, and those that differ by little are taken for equal;
* what is wrong with the states of constraints (`_constraint_states.py`);
* diverse groups read their overlap at the ids that sentences have in the dataset. Here every
  sentence is searched alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from _constraint_states import repair_states
from fairseq.models import FairseqDecoder, FairseqLanguageModel
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.search import (
    BeamSearch,
    DiverseBeamSearch,
    DiverseSiblingsSearch,
    LengthConstrainedBeamSearch,
    LexicallyConstrainedBeamSearch,
    PrefixConstrainedBeamSearch,
)
from fairseq.sequence_generator import EnsembleModel

IMPOSSIBLE = -torch.inf


def repair() -> None:
    """Mend what is wrong with every search: the beam size that it leaves behind in the model, and
    n-gram blocking that blocks nothing on a CPU."""
    EnsembleModel.set_decoder_beam_size = lambda self, beam_size: None
    NGramRepeatBlock._no_repeat_ngram = _ban_repeated_ngrams
    repair_states()


def _ban_repeated_ngrams(
    block: NGramRepeatBlock,
    tokens: torch.Tensor,
    lprobs: torch.Tensor,
    bsz: int,
    beam_size: int,
    step: int,
) -> torch.Tensor:
    """What fairseq's CUDA extension does: its Python twin looks at the padding behind `step`."""
    n = block.no_repeat_ngram_size
    for row, lprob in zip(tokens[:, : step + 1].tolist(), lprobs, strict=True):
        tail = row[step + 2 - n :]
        for i in range(step + 2 - n):
            if row[i : i + n - 1] == tail:
                lprob[row[i + n - 1]] = IMPOSSIBLE
    return lprobs


class Margin:
    """How close the closest decision of a search was."""

    def __init__(self) -> None:
        self.smallest = float("inf")

    def note(self, values: Any) -> None:
        """Every two neighbours of a sorted list decide something."""
        values = [v for v in torch.as_tensor(values).tolist() if v > IMPOSSIBLE]
        gaps = [a - b for a, b in zip(values, values[1:], strict=False)]
        self.smallest = min([self.smallest, *gaps])

    def note_candidates(self, values: torch.Tensor, ends: torch.Tensor, beam: int) -> None:
        """The best candidates, more than twice the beam, of which those at `ends` are `</s>`."""
        possible = values > IMPOSSIBLE
        values, ends = values[possible], ends[possible]
        # Which candidates go on: the last that does against the first that does not.
        self.note(values[~ends][beam - 1 : beam + 1])
        # Which hypotheses end, and in which order: </s> against every neighbour among the first.
        for i in range(min(beam, len(values) - 1)):
            if ends[i] or (i == beam - 1 and ends[i + 1]):
                self.note(values[i : i + 2])


def totals(step: int, lprobs: torch.Tensor, scores: Any) -> torch.Tensor:
    """What is ranked, for one sentence: [beams, V]; of the first step only the first beam."""
    return lprobs[0, :1] if step == 0 else lprobs[0] + scores[0, :, step - 1, None]


def bury(lprobs: torch.Tensor, tokens: torch.Tensor, eos: int) -> None:
    """No row goes on that has chosen `</s>`."""
    lprobs[0, (tokens[:, 1:] == eos).any(dim=1)] = IMPOSSIBLE


class Plain(BeamSearch):
    def __init__(self, dictionary: Any, beam: int, margin: Margin) -> None:
        super().__init__(dictionary)
        self.beam, self.margin = beam, margin

    def step(self, step: int, lprobs: torch.Tensor, scores: Any, *rest: Any, **kwargs: Any) -> Any:
        every = totals(step, lprobs, scores)
        values, index = every.flatten().topk(min(2 * self.beam + 1, every.numel()))
        self.margin.note_candidates(values, index % every.shape[1] == self.eos, self.beam)
        return super().step(step, lprobs, scores, *rest, **kwargs)


def length_constrained(dictionary: Any, beam: int, margin: Margin) -> LengthConstrainedBeamSearch:
    """As `FairseqTask.build_generator` has it."""
    strategy = LengthConstrainedBeamSearch(
        dictionary, min_len_a=1, min_len_b=0, max_len_a=1, max_len_b=0
    )
    strategy.beam = Plain(dictionary, beam, margin)
    return strategy


class _OfGroup(BeamSearch):
    """The search within a diverse group. Every rank of its list matters."""

    def __init__(self, dictionary: Any, margin: Margin) -> None:
        super().__init__(dictionary)
        self.margin = margin

    def step(self, step: int, lprobs: torch.Tensor, scores: Any, *rest: Any, **kwargs: Any) -> Any:
        every = totals(step, lprobs, scores).flatten()
        found, tokens, beams = super().step(step, lprobs, scores, *rest, **kwargs)
        self.margin.note(every.topk(min(found.shape[1] + 1, every.numel()))[0])
        tokens[found == IMPOSSIBLE] = self.pad  # whose penalty hurts nobody
        return found, tokens, beams


class Groups(DiverseBeamSearch):
    group_overlap: torch.Tensor

    def __init__(self, dictionary: Any, margin: Margin, *args: Any) -> None:
        super().__init__(dictionary, *args)
        self.beam = _OfGroup(dictionary, margin)

    def step(self, step: int, lprobs: torch.Tensor, scores: Any, *rest: Any) -> Any:
        bury(lprobs, rest[0], self.eos)
        before = self.group_overlap.clone() if step else 0
        found, tokens, beams = super().step(step, lprobs, scores, *rest)
        real = (found > IMPOSSIBLE).view(1, -1, self.num_groups)
        chosen = tokens.view(1, -1, self.num_groups)
        same = chosen.unsqueeze(2).eq(chosen.unsqueeze(3)) & real.unsqueeze(2) & real.unsqueeze(3)
        self.group_overlap = self.diversity_discount * (before + same.sum(dim=1))
        return found, tokens, beams


class Siblings(DiverseSiblingsSearch):
    def __init__(self, dictionary: Any, beam: int, margin: Margin, rate: float) -> None:
        super().__init__(dictionary, rate)
        self.beam, self.size, self.margin = Plain(dictionary, beam, margin), beam, margin

    def step(self, step: int, lprobs: torch.Tensor, scores: Any, *rest: Any) -> Any:
        if step:
            k = 2 * self.size
            every = totals(step, lprobs, scores)
            values, tokens = every.topk(k + 1)  # one more than is ranked
            penalised = (values - torch.arange(1, k + 2) * self.diversity_rate)[:, :k]
            best, index = penalised.flatten().topk(min(k + 1, penalised.numel()))
            ends = tokens[:, :k].flatten()[index] == self.eos
            self.margin.note_candidates(best, ends, self.size)
            # The ranks of those that were taken, against the next of the same beam.
            for row, taken in zip(values, (index // k).bincount(minlength=self.size), strict=True):
                self.margin.note(row[: taken + 1])
        return super().step(step, lprobs, scores, *rest)


class Allowed(PrefixConstrainedBeamSearch):
    def __init__(self, dictionary: Any, margin: Margin, allowed: Callable[..., Any]) -> None:
        super().__init__(dictionary, allowed)
        self.margin = margin

    def step(self, step: int, lprobs: torch.Tensor, scores: Any, *rest: Any) -> Any:
        bury(lprobs, rest[0], self.eos)
        found = super().step(step, lprobs, scores, *rest)  # edits lprobs
        every = totals(step, lprobs, scores).flatten()
        self.margin.note(every.topk(min(found[0].shape[1] + 1, every.numel()))[0])
        return found


class _PossibleState:
    """A constraint state that asks for possible tokens only."""

    def __init__(self, state: Any, lprobs: torch.Tensor) -> None:
        self.state, self.advance, self.tokens = state, state.advance, state.tokens
        self.possible = (lprobs > IMPOSSIBLE).tolist()

    def next_tokens(self) -> set[int]:
        return {token for token in map(int, self.state.next_tokens()) if self.possible[token]}


class Lexical(LexicallyConstrainedBeamSearch):
    def __init__(self, dictionary: Any, margin: Margin, representation: str) -> None:
        super().__init__(dictionary, representation)
        self.margin = margin

    def step_sentence(
        self,
        step: int,
        sentno: int,
        lprobs: torch.Tensor,
        states: list[Any],
        beams: torch.Tensor,
        tokens: torch.Tensor,
        scores: torch.Tensor,
    ) -> Any:
        possible = scores > IMPOSSIBLE
        beams, tokens, scores = beams[possible], tokens[possible], scores[possible].double()
        # The step runs over one beam at first, and over all of them later.
        searched = [_PossibleState(*pair) for pair in zip(states, lprobs, strict=False)]
        asked = [
            (beam, token) for beam, state in enumerate(searched) for token in state.next_tokens()
        ]
        every = set(zip(beams.tolist(), tokens.tolist(), strict=True)) | set(asked)
        self._note(lprobs, every, states)
        assert every, "the constraints cannot be met"
        if len(every) == 1:  # with two equal candidates, fairseq drops both as duplicates
            ((beam, token),) = every
            found = lprobs[beam, token][None], torch.tensor([token]), torch.tensor([beam])
            new_states = [states[beam].advance(token)]
        else:
            # Smaller numbers, and more exact ones, than the hundred that a bank is worth.
            _, tokens, beams, new_states = super().step_sentence(
                step, sentno, lprobs.double() / 2**20, searched, beams, tokens, scores / 2**20
            )
            found = lprobs[beams, tokens], tokens, beams
        room = self.num_cands - len(found[0])
        filled = [
            torch.cat([values, values.new_full((room,), filling)])
            for values, filling in zip(found, (IMPOSSIBLE, self.pad, 0), strict=True)
        ]
        return (*filled, [*new_states, *[states[0]] * room])

    def _note(self, lprobs: torch.Tensor, every: set, states: list[Any]) -> None:
        # Which candidates there are ...
        flat = lprobs.flatten().topk(min(self.num_cands + 1, lprobs.numel()))[0]
        self.margin.note(flat[-2:])
        for row in lprobs:
            self.margin.note(row.topk(2)[0])
        # ... and their order in each bank.
        banks: dict[int, list[float]] = {}
        for beam, token in every:
            bank = states[beam].advance(token).bank
            banks.setdefault(bank, []).append(lprobs[beam, token].item())
        for values in banks.values():
            self.margin.note(sorted(values, reverse=True))


class Bigrams(FairseqLanguageModel):
    """A decoder-only model whose logits are a row of a table [V, V], the last token's."""

    def __init__(self, dictionary: Any, table: torch.Tensor) -> None:
        decoder = FairseqDecoder(dictionary)
        decoder.forward = lambda prev_output_tokens, **kwargs: (table[prev_output_tokens], None)
        super().__init__(decoder)

    def forward(self, src_tokens: torch.Tensor, **kwargs: Any) -> Any:
        return self.decoder(src_tokens, **kwargs)
