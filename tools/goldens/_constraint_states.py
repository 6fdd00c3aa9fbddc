"""fairseq's constraint states, mended; the classes of the same names in
`bart_hk/generation/constraint_states.py` say why.

* An ordered phrase that breaks off costs that phrase alone, not the complete ones before it, and it
  may have begun again before the token that breaks it off.
* The token that begins again is the first of the present phrase, not of the first phrase, and is
  asked for from the first token of a phrase on, not from the second of all.
* An unordered phrase may begin again with the token that breaks it off.
"""

from fairseq.token_generation_constraints import OrderedConstraintState, UnorderedConstraintState


def repair_states() -> None:
    """Mends the states of every constrained search from here on."""
    OrderedConstraintState.advance = _advance_in_order
    OrderedConstraintState.next_tokens = _ask_in_order
    UnorderedConstraintState.advance = _advance_in_trie


def _present_phrase(state: OrderedConstraintState) -> tuple[int, list[int]]:
    """Where the phrase that goes on begins, and its ids."""
    ends = state.sequence.endpoints
    begin = max((i + 1 for i in range(state.bank) if ends[i]), default=0)
    end = ends.index(True, begin) + 1
    return begin, [int(token) for token in state.sequence.sequences[begin:end]]


def _advance_in_order(state: OrderedConstraintState, token: int) -> OrderedConstraintState:
    if state.finished:
        return state
    begin, phrase = _present_phrase(state)
    text = [*phrase[: state.bank - begin], int(token)]
    there = max(n for n in range(len(text) + 1) if text[len(text) - n :] == phrase[:n])
    return OrderedConstraintState(state.sequence, begin + there - 1)


def _ask_in_order(state: OrderedConstraintState) -> set[int]:
    if state.finished:
        return set()
    begin, phrase = _present_phrase(state)
    return {phrase[state.bank - begin], *phrase[: state.bank > begin]}


def _advance_in_trie(state: UnorderedConstraintState, token: int) -> UnorderedConstraintState:
    child = state.node[int(token)]
    if child is not None and state.generated[child] < child.num_constraints:
        return UnorderedConstraintState(child, copy_from=state)
    broken = UnorderedConstraintState(state.root, copy_from=state)
    node = state.node
    while node != state.root:
        if state.completed[node] < node.terminal:
            broken.completed[node] += 1
            break
        broken.generated[node] -= 1
        node = node.parent
    child = state.root[int(token)]
    if child is not None and broken.generated[child] < child.num_constraints:
        return UnorderedConstraintState(child, copy_from=broken)
    return broken
