"""Run by the oracle's interpreter: the real fairseq's constraint states and constrained steps.

`states.json` lists {"ordered", "phrases", "stream"}; `steps.json` lists batches {"ordered",
"phrases" of each row, "beam", "vocabulary", "eos"}, and `steps.npz` has the log probabilities of
batch i as `i`: float32 [T, B, W, V].

`answers.json` gets all phrases of `states.json` in fairseq's "packed" form, and the rest from
fairseq as it is ("real") and with its states mended ("mended", `_constraint_states.py` in
`tools/goldens`). Of a stream, after each number of tokens: bank, finished and the tokens asked for;
and after how many tokens a phrase first broke off, or null. Of a batch, for each step and row:
scores, tokens and beams of the candidates, and why fairseq may have put them into another order
than it means to.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _constraint_states import repair_states
from fairseq.search import LexicallyConstrainedBeamSearch
from fairseq.token_generation_constraints import (
    OrderedConstraintState,
    UnorderedConstraintState,
    pack_constraints,
)


def packed(rows: list[list[list[int]]]) -> torch.Tensor:
    return pack_constraints([[torch.tensor(phrase) for phrase in row] for row in rows])


def follow(case: dict[str, Any]) -> dict[str, Any]:
    kind = OrderedConstraintState if case["ordered"] else UnorderedConstraintState
    state = kind.create(packed([case["phrases"]])[0])
    seen = {"bank": [], "finished": [], "asked": []}
    broke = None
    for n, token in enumerate([None, *case["stream"]]):
        if n:
            before, state = state, state.advance(token)
            on = (breaks_nothing if case["ordered"] else restarts_nothing)(before, token)
            if broke is None and not on:
                broke = n
        seen["bank"].append(int(state.bank))
        seen["finished"].append(bool(state.finished))
        seen["asked"].append(sorted({int(t) for t in state.next_tokens()}))
    return {**seen, "broke": broke}


def breaks_nothing(state: OrderedConstraintState, token: int) -> bool:
    between = state.bank == 0 or state.sequence.endpoints[state.bank - 1]
    return between or int(state.sequence[state.bank]) == token


def restarts_nothing(state: UnorderedConstraintState, token: int) -> bool:
    """Is this not the first token of a phrase that it breaks off without completing any?"""
    path = []
    node = state.node
    while node != state.root:
        path.append(node)
        node = node.parent
    child = state.node[token]
    if not path or (child is not None and state.generated[child] < child.num_constraints):
        return True
    return path[-1].id != token or any(state.completed[node] < node.terminal for node in path)


class Dictionary:
    def __init__(self, size: int, eos: int) -> None:
        self.size, self.last = size, eos

    def __len__(self) -> int:
        return self.size

    def pad(self) -> int:
        return 1

    unk = pad

    def eos(self) -> int:
        return self.last


class Noting(LexicallyConstrainedBeamSearch):
    """Notes for each sentence of a step what may have led its order astray."""

    def step_sentence(self, step, sentno, lprobs, states, beams, tokens, scores):  # type: ignore
        alive = states[:1] if step == 0 else states
        asked = [(i, int(t)) for i, state in enumerate(alive) for t in state.next_tokens()]
        every = set(zip(beams.tolist(), tokens.tolist(), strict=True)) | set(asked)
        of_bank: dict[int, list[float]] = {}
        for beam, token in every:
            bank = int(states[beam].advance(token).bank)
            of_bank.setdefault(bank, []).append(float(lprobs[beam, token]))
        why = set()
        if any(score == -np.inf for scores in of_bank.values() for score in scores):
            why.add("impossible")
        finite = {b: [x for x in v if x > -np.inf] for b, v in of_bank.items()}
        finite = {b: v for b, v in finite.items() if v}
        for high, low in ((a, b) for a in finite for b in finite if a > b):
            if min(finite[high]) <= max(finite[low]) - 99.9 * (high - low):
                why.add("hundred")
        if max(of_bank) - min(of_bank) > len(every):
            why.add("wrapped")
        # The keys are float32: their last place, against the scores that they must tell apart.
        place = 2.0**-22 * (100 * max(map(abs, of_bank)) + 100 * len(states[0].tokens) + 400)
        for values in finite.values():
            ordered = np.sort(values)
            if (np.diff(ordered) < place).any():
                why.add("close")
        self.notes.append(sorted(why))
        return super().step_sentence(step, sentno, lprobs, states, beams, tokens, scores)


def search(case: dict[str, Any], log_probs: np.ndarray) -> list[Any]:
    beam, eos = case["beam"], case["eos"]
    strategy = Noting(
        Dictionary(case["vocabulary"], eos), "ordered" if case["ordered"] else "unordered"
    )
    strategy.init_constraints(packed(case["phrases"]), beam)
    batch = len(case["phrases"])
    totals = torch.zeros(batch, beam, 0)
    answers = []
    for step, lprobs in enumerate(torch.from_numpy(log_probs.copy())):
        strategy.notes = []
        scores, tokens, beams = strategy.step(step, lprobs, totals)
        answers.append([scores.tolist(), tokens.tolist(), beams.tolist(), strategy.notes])
        # As in fairseq's generator, for rows that are never done: those that do not end go on.
        ends = tokens.eq(eos) & scores.ne(-np.inf)
        order = torch.arange(2 * beam) + 2 * beam * ends
        active = order.topk(beam, dim=1, largest=False)[1]
        strategy.update_constraints(active)
        totals = torch.cat([totals, scores.gather(1, active).unsqueeze(2)], dim=2)
    return answers


def main(folder: Path) -> None:
    streams = json.loads((folder / "states.json").read_text())
    batches = json.loads((folder / "steps.json").read_text())
    log_probs = np.load(folder / "steps.npz")

    def answer() -> dict[str, Any]:
        return {
            "states": [follow(case) for case in streams],
            "steps": [search(case, log_probs[str(i)]) for i, case in enumerate(batches)],
        }

    answers: dict[str, Any] = {"real": answer()}
    answers["packed"] = packed([case["phrases"] for case in streams]).tolist()
    repair_states()
    answers["mended"] = answer()
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
