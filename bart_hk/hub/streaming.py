"""Text as it is decoded, in pieces that never have to be taken back."""

from collections.abc import Callable, Iterable, Iterator

# What bytes that are no whole character yet are shown as.
_UNFINISHED = "\ufffd"


def text_pieces(
    ids: Iterable[int], decode: Callable[[list[int]], str], held_words: int = 0
) -> Iterator[str]:
    """The text of `ids`, piece by piece as they come; joined, the pieces are `decode(all ids)`.

    A piece is given away once no further id can change it: a character may take several tokens, and
    until the last of them its bytes decode to U+FFFD.

    Args:
        ids: as they are generated.
        decode: ids to text; what it gives for more ids must begin with what it gave for fewer, but
            for unfinished characters at the end.
        held_words: words at the end that `decode` may still change, and which wait, too.
    """
    so_far: list[int] = []
    text = given = ""
    for token in ids:
        so_far.append(token)
        text = decode(so_far)
        settled = text.rstrip(_UNFINISHED)
        for _ in range(held_words):
            settled = settled[: max(settled.rfind(" "), 0)]
        if len(settled) > len(given):
            yield settled[len(given) :]
            given = settled
    if len(text) > len(given):
        yield text[len(given) :]
