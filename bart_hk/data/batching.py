"""Batches whose shapes come from a short list, so that few programs are ever compiled.

Lengths are rounded up to a bucket, and the number of rows of a batch follows from its bucket alone;
what is missing is filled up with rows of padding. So a stream of any lengths compiles each function
at most once per bucket.

Shapes: B rows of a batch, S padded length.
"""

from collections.abc import Sequence

import numpy as np

# Steps of at most one half keep the padding of mixed sentences near a tenth.
LENGTH_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def buckets_up_to(longest: int, buckets: Sequence[int] = LENGTH_BUCKETS) -> tuple[int, ...]:
    """The buckets for a model of `longest` positions: those below it, and `longest` itself."""
    if longest < 1:
        raise ValueError(f"the longest row must have at least 1 token, not {longest}")
    return tuple(b for b in buckets if b < longest) + (longest,)


def choose_buckets(
    lengths: Sequence[int] | np.ndarray, *, padding: float = 0.08, multiple: int = 8
) -> tuple[int, ...]:
    """The fewest buckets for some rows with at most that share of padding in their batches.

    Few programs are compiled, then, and little is computed for nothing.

    Args:
        lengths: tokens of each row; at least one, the longest at least 1.
        padding: of the tokens of batches whose rows are all there.
        multiple: of which every bucket is one, but for the last where the longest row ends first.
            Where even all of them are too few (rows of 9 tokens in 16), half of it is tried.

    Returns:
        Rising lengths, the last of which holds the longest row.
    """
    sizes = np.asarray(lengths, np.int64)
    longest = int(sizes.max(initial=0))
    if longest < 1:
        raise ValueError("there are no rows with tokens, so no buckets for them")
    steps = -(-longest // multiple)
    ends = np.minimum(np.arange(1, steps + 1) * multiple, longest)
    rows = np.bincount(np.maximum(-(-sizes // multiple), 1) - 1, minlength=steps)
    before = np.concatenate([[0], np.cumsum(rows)])
    # cost[j]: padded tokens of the rows in the first j steps, with so many buckets; from[k][j]: the
    # step after which the last of them begins.
    limit = sizes.sum() / (1 - padding)
    cost = np.where(before > 0, np.inf, 0.0)
    came: list[np.ndarray] = []
    candidates = np.append(0, ends) * (before - before[:, None])  # [from, to]
    candidates = np.where(np.tri(steps + 1, k=-1).T > 0, candidates, np.inf)
    while cost[-1] > limit and len(came) < steps:
        total = cost[:, None] + candidates
        came.append(total.argmin(axis=0))
        cost = np.minimum(total.min(axis=0), np.where(before > 0, np.inf, 0.0))
    if cost[-1] > limit and multiple > 1:
        return choose_buckets(sizes, padding=padding, multiple=multiple // 2)
    chosen, at = [], steps
    for begins in reversed(came):
        chosen.append(int(ends[at - 1]))
        at = int(begins[at])
        if at == 0:
            break
    return tuple(sorted(chosen))


def padding_share(
    lengths: Sequence[int] | np.ndarray, plan: Sequence[tuple[np.ndarray, tuple[int, int]]]
) -> float:
    """The share of padding in planned batches: (rows, [B, S]) pairs, as of `plan_shapes`."""
    sizes = np.asarray(lengths, np.int64)
    held = sum(int(sizes[rows].sum()) for rows, _ in plan)
    return 1 - held / max(1, sum(count * length for _, (count, length) in plan))


def bucket(length: int, buckets: Sequence[int] = LENGTH_BUCKETS) -> int:
    """The smallest bucket that holds `length`.

    Raises:
        ValueError: the length is above every bucket.
    """
    for size in buckets:
        if length <= size:
            return size
    raise ValueError(f"a row of {length} tokens is longer than the longest bucket, {buckets[-1]}")


def pad_rows(
    rows: Sequence[Sequence[int] | np.ndarray],
    pad: int,
    length: int | None = None,
    count: int | None = None,
) -> np.ndarray:
    """Rows of ids, padded on the right: int32 [B, S].

    Args:
        rows: ids, each 1-D.
        pad: id that fills the rest.
        length: S; the longest row's by default.
        count: B; the number of rows by default. Rows beyond the given ones are all padding.

    Raises:
        ValueError: a row is longer than `length`, or there are more than `count` rows.
    """
    longest = max((len(row) for row in rows), default=0)
    length = longest if length is None else length
    count = len(rows) if count is None else count
    if longest > length:
        raise ValueError(f"a row of {longest} tokens does not fit a padded length of {length}")
    if len(rows) > count:
        raise ValueError(f"{len(rows)} rows do not fit a batch of {count}")
    out = np.full((count, length), pad, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def batch_rows(length: int, *, max_tokens: int | None = None, batch_size: int | None = None) -> int:
    """The number of rows B of every batch in the bucket `length`: as many as both limits allow.

    `max_tokens` bounds B * S, padding included. A row that alone exceeds it still gets a batch.
    """
    if max_tokens is None and batch_size is None:
        raise ValueError("give max_tokens or batch_size (or both) to bound a batch")
    for name, value in (("max_tokens", max_tokens), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    limits = [batch_size] if batch_size is not None else []
    if max_tokens is not None:
        limits.append(max(1, max_tokens // length))
    return min(limits)


def plan_batches(
    lengths: Sequence[int] | np.ndarray,
    *,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    buckets: Sequence[int] = LENGTH_BUCKETS,
    shuffle: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Which rows go together: every row once, each batch of one bucket.

    The rows of a bucket that do not fill a batch join the next longer bucket's: their padding costs
    less than the rows that would be missing, and no update is made of two rows.

    Args:
        lengths: tokens of each row.
        max_tokens: bound on a batch's padded tokens.
        batch_size: bound on a batch's rows.
        buckets: padded lengths to choose from, rising.
        shuffle: integers, such as (seed, epoch), that key a permutation of the rows within their
            bucket and of the batches. None sorts rows by length (equal lengths in the given order),
            shortest batches first.

    Returns:
        Index arrays (int64). A batch has the shape [batch_rows(b), b], b the bucket of its longest
        row. Fewer rows than that have the last batch and, with a token budget, one that is made of
        what was left alone.
    """
    sizes = np.asarray(lengths, np.int64)
    if not sizes.size:
        return []
    bucket(int(sizes.max()), buckets)  # raises where a row fits none
    # Both searchsorted and argsort are exact on integers, so the plan is the same everywhere.
    bucket_of = np.searchsorted(np.asarray(buckets), sizes)
    rng = None if shuffle is None else np.random.default_rng(list(shuffle))
    batches = []
    used = np.unique(bucket_of)
    left = np.empty(0, np.int64)
    for b in used:
        rows = np.flatnonzero(bucket_of == b)
        if rng is None:
            rows = rows[np.argsort(sizes[rows], kind="stable")]
        else:
            rows = rng.permutation(rows)
        rows = np.concatenate([left, rows])
        count = batch_rows(buckets[b], max_tokens=max_tokens, batch_size=batch_size)
        until = len(rows) if b == used[-1] else len(rows) // count * count
        batches += [rows[i : i + count] for i in range(0, until, count)]
        left = rows[until:]
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def plan_shapes(
    lengths: Sequence[int] | np.ndarray,
    *,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    buckets: Sequence[int] = LENGTH_BUCKETS,
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Batches for a list that is seen once: few shapes, whether it is long or short.

    Every bucket but the last has one shape, that of a full batch; rows that do not fill one join
    the next longer bucket. What is left in the last takes the next power of two of rows, or the
    full batch's shape where there was one: at most one shape per bucket.

    Args: as `plan_batches`.

    Returns:
        (rows, shape) pairs: index arrays (int64), shortest rows first, and the [B, S] to pad to.
    """
    sizes = np.asarray(lengths, np.int64)
    if not sizes.size:
        return []
    bucket(int(sizes.max()), buckets)  # raises where a row fits none
    bucket_of = np.searchsorted(np.asarray(buckets), sizes)
    used = np.unique(bucket_of)
    plan = []
    left = np.empty(0, np.int64)
    for b in used:
        rows = np.flatnonzero(bucket_of == b)
        rows = np.concatenate([left, rows[np.argsort(sizes[rows], kind="stable")]])
        count = batch_rows(buckets[b], max_tokens=max_tokens, batch_size=batch_size)
        full = len(rows) // count * count
        shape = (count, buckets[b])
        plan += [(rows[i : i + count], shape) for i in range(0, full, count)]
        left = rows[full:]
        if b == used[-1] and len(left):
            needed = count if full else min(count, 1 << (len(left) - 1).bit_length())
            plan.append((left, (needed, buckets[b])))
    return plan
