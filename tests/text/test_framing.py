import pytest

from bart_hk.text.framing import frame, truncate


def test_rows_are_framed_as_fairseq_does():
    assert frame([[5, 6]], 0, 2).tolist() == [0, 5, 6, 2]
    assert frame([[5], [], [7]], 0, 2).tolist() == [0, 5, 2, 2, 7, 2]
    assert frame([[5], [7]], 0, 2, [2]).tolist() == [0, 5, 2, 2, 7, 2]


@pytest.mark.parametrize(
    ("lengths", "budget", "kept"),
    [
        ((3, 4), 7, (3, 4)),
        ((3, 9), 8, (3, 5)),
        ((9, 3), 8, (5, 3)),
        ((9, 8), 7, (4, 3)),
        ((9, 3), 7, (4, 3)),
        ((5, 5), 6, (3, 3)),
        ((9,), 4, (4,)),
        ((2, 9, 9), 12, (2, 5, 5)),
        ((4, 4), -1, (0, 0)),
    ],
)
def test_the_longer_text_is_cut_first(lengths, budget, kept):
    parts = [list(range(length)) for length in lengths]
    assert truncate(parts, budget) == [list(range(length)) for length in kept]
