"""Triton kernels behind `fused.received`; imported only where triton is installed.

Two passes over tiles of Q K^T, none of which is ever stored: the log-sum-exp of every row, then, per column, the sum of
exp(logit - row's log-sum-exp).  Tiles above the causal diagonal are skipped.  No atomics, so sums are deterministic.
Letters: I images, H query heads, n visual queries, S = before + n keys, E head size.
"""

import triton
import triton.language as tl


@triton.jit
def _logits(
    q,
    k,
    rows,
    columns,
    before,
    total,
    scale,
    hidden_row,
    CAUSAL: tl.constexpr,
    PADDED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """[M, N] float32 logits of one tile, -inf where a row does not look; q [M, E], k [N, E]."""
    if WIDEN:  # triton's interpreter multiplies bfloat16 by its bit patterns
        q, k = q.to(tl.float32), k.to(tl.float32)
    x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    seen = columns[None, :] < total
    if CAUSAL:
        seen = seen & (columns[None, :] <= before + rows[:, None])
    if PADDED:
        hidden = tl.load(hidden_row + columns, mask=columns < total, other=1)
        seen = seen & (hidden[None, :] == 0)
    return tl.where(seen, x, float("-inf"))


@triton.jit
def _tile(base, at, stride, limit, WIDTH: tl.constexpr, E: tl.constexpr):
    """Rows `at` of a matrix [limit, WIDTH], zero beyond both ends: [len(at), E]."""
    e = tl.arange(0, E)
    inside = (at[:, None] < limit) & (e[None, :] < WIDTH)
    return tl.load(base + at[:, None] * stride + e[None, :], mask=inside, other=0.0)


@triton.jit
def row_lse(
    query,
    key,
    hidden,
    lse,
    count,
    before,
    total,
    scale,
    q_image,
    q_head,
    q_row,
    k_image,
    k_head,
    k_row,
    heads,
    groups,
    CAUSAL: tl.constexpr,
    PADDED: tl.constexpr,
    WIDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """lse [I * H, n] float32; grid (tiles of rows, I * H)."""
    tile, plane = tl.program_id(0), tl.program_id(1)
    image, head = plane // heads, plane % heads
    rows = tile * M + tl.arange(0, M)
    q = _tile(query + image * q_image + head * q_head, rows, q_row, count, WIDTH, E)
    keys, hidden_row = key + image * k_image + head // groups * k_head, hidden + image * total
    top, mass = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    end = total
    if CAUSAL:
        end = tl.minimum(total, before + (tile + 1) * M)
    for start in range(0, end, N):
        columns = start + tl.arange(0, N)
        k = _tile(keys, columns, k_row, total, WIDTH, E)
        x = _logits(q, k, rows, columns, before, total, scale, hidden_row, CAUSAL, PADDED, WIDEN)
        new = tl.maximum(top, tl.max(x, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
        mass = mass * tl.exp(top - safe) + tl.sum(tl.exp(x - safe[:, None]), 1)
        top = new
    tl.store(lse + plane * count + rows, top + tl.log(mass), mask=rows < count)


@triton.jit
def column_sums(
    query,
    key,
    hidden,
    lse,
    out,
    count,
    before,
    total,
    scale,
    q_image,
    q_head,
    q_row,
    k_image,
    k_head,
    k_row,
    heads,
    groups,
    CAUSAL: tl.constexpr,
    PADDED: tl.constexpr,
    WIDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """out [I * H, n] float32: softmax weight of each visual key summed over rows; grid (tiles of keys, I * H)."""
    tile, plane = tl.program_id(0), tl.program_id(1)
    image, head = plane // heads, plane % heads
    slots = tile * N + tl.arange(0, N)
    columns = before + slots
    k = _tile(key + image * k_image + head // groups * k_head, columns, k_row, total, WIDTH, E)
    queries, hidden_row = query + image * q_image + head * q_head, hidden + image * total
    received = tl.zeros([N], tl.float32)
    begin = 0
    if CAUSAL:
        begin = tile * N // M * M
    for start in range(begin, count, M):
        rows = start + tl.arange(0, M)
        q = _tile(queries, rows, q_row, count, WIDTH, E)
        x = _logits(q, k, rows, columns, before, total, scale, hidden_row, CAUSAL, PADDED, WIDEN)
        row = tl.load(lse + plane * count + rows, mask=rows < count, other=float("inf"))
        received += tl.sum(tl.exp(x - row[:, None]), 0)
    tl.store(out + plane * count + slots, received, mask=slots < count)
