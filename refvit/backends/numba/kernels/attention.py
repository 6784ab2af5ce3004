"""softmax(q k^T scale) v, a panel of queries at a time: a lane is a query, from the first product to the last.

    scores[m, j] = sum over d of k[m, d] qt[d, j]      j < PANEL queries, transposed and scaled on the way in
    p[m, j] = exp(scores[m, j] - top[j])               top[j]: the greatest score so far
    ot[e, j] = sum over m of v[m, e] p[m, j]           divided by the sum of p and transposed on the way out

Keys and values are read where they lie, one value broadcast at a time, so nothing is packed, no extent needs padding except the
last panel of queries, and the softmax has neither a horizontal sum nor a tail. Keys come in blocks of at most `BLOCK`, so that
scores stay in the L1 cache. A later block with a greater `top` rescales the sums so far (Milakov & Gimelshein 2018).

args of `attention`, strides in bytes:
    0 q, 1 k, 2 v, 3 out    addresses
    4 d, 5 e, 6 l, 7 m      extents
    8 factor                float32: scale
    9 padded                number of further keys that are zero with logit `PADDED`, and values that are zero
    10 items                panels of all heads
    11 per                  panels of a unit
    12 inner l, 13 q outer, 14 q inner, 15 out outer, 16 out inner    token i is at (i // inner) outer + (i % inner) inner
    17 inner m, 18 k outer, 19 k inner, 20 v outer, 21 v inner
    22 leading              factors of batch and heads, outermost first, then for each: extent, strides of q, k, v, out
"""

from __future__ import annotations

import llvmlite.ir as ir
import numpy as np
from numba import njit
from numba.core import types

from refvit.backends.numba.cpu import target
from refvit.backends.numba.kernels.elementary import exp
from refvit.backends.numba.simd import (
    F32,
    I32,
    I64,
    INTS,
    LANES,
    VEC,
    _constant,
    _declare,
    _i,
    _instruction,
    _load,
    _load_part,
    _spread,
    _store,
    _store_part,
    _v,
    arg,
    arg_f32,
    load,
    set_arg,
    splat,
    store,
)

f = np.float32
BLOCK = 128  # keys, so that their scores and the rows of v stay in L1
AHEAD, BEYOND = 6, 32  # rows of v to prefetch; entries of the tables that only prefetching reads
PANEL = 3 * LANES
WIDTH = 4 * LANES  # bytes of a vector
# rows of the register tiles with at most two vectors and with three, tried in turn; operands take the other registers
ROWS = {14: ((12, 4, 1), (8, 4, 2, 1)), 10: ((10, 4, 1), (8, 4, 2, 1)), 6: ((6, 4, 1), (4, 2, 1))}[target().rows]
PADDED = f(-100.0)


# register tiles --------------------------------------------------------------------------------------------------------------


def _pointer(b, address, kind=VEC):
    return b.inttoptr(address, kind.as_pointer())


def _word(b, table, index):
    return b.load(b.gep(_pointer(b, table, I64), [index]))


def _prefetch(b, address):
    """A row after another in a table is a pattern that no prefetcher of a processor knows."""
    byte = ir.IntType(8).as_pointer()
    f = _declare(b, "llvm.prefetch.p0", ir.VoidType(), [byte, I32, I32, I32])
    b.call(f, [b.inttoptr(address, byte), I32(0), I32(3), I32(1)])  # to read, into L1, data


def _tile(b, rows, vectors, steps, w, pitch, values):
    """sums[i][j] = sum over c < steps of values(c)[i] * w[c][j], a loop of at least one step."""
    fma_ = _declare(b, f"llvm.fma.v{LANES}f32", VEC, [VEC] * 3)
    before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
    b.branch(loop)
    b.position_at_end(loop)
    c, at = b.phi(I64), b.phi(I64)
    c.add_incoming(I64(0), before)
    at.add_incoming(w, before)
    sums = [b.phi(VEC) for _ in range(rows * vectors)]
    for phi in sums:
        phi.add_incoming(_constant(0.0), before)
    columns = [_load(b, b.add(at, I64(WIDTH * j))) for j in range(vectors)]
    ahead = []
    for i, pointer in enumerate(values(c)):
        value = b.load(pointer)
        value.align = 4
        wide = _spread(b, value)
        ahead += [b.call(fma_, [wide, columns[j], sums[i * vectors + j]]) for j in range(vectors)]
    c_next, at_next = b.add(c, I64(1)), b.add(at, pitch)
    c.add_incoming(c_next, loop)
    at.add_incoming(at_next, loop)
    for phi, value in zip(sums, ahead, strict=True):
        phi.add_incoming(value, loop)
    b.cbranch(b.icmp_signed("<", c_next, steps), loop, after)
    b.position_at_end(after)
    return ahead


def _ladder(b, n, vectors, state, tile):
    """Run `tile(rows, state)`, which gives the next state, on the most rows at a time while they last, and so on to one."""
    for rows in ROWS[vectors == 3]:
        before, head, body, done = b.block, *(b.append_basic_block(name) for name in ("head", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        left, now = b.phi(I64), [b.phi(I64) for _ in state]
        for phi, value in zip((left, *now), (n, *state), strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed(">=", left, I64(rows)), body, done)
        b.position_at_end(body)
        after = tile(rows, now)
        for phi, value in zip((left, *now), (b.sub(left, I64(rows)), *after), strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(done)
        n, state = left, now


def _scores(vectors):
    """(m, table of rows of k, d, qt, pitch, out, top): out = k qt, and top = max(top, out) of each column."""

    def write(b, n, table, steps, w, pitch, out, top):
        def tile(rows, state):
            table, out = state
            keys = [_pointer(b, _word(b, table, I64(i)), F32) for i in range(rows)]

            def values(c):
                if rows >= 4:  # in 8 steps, 8 values of each of the next tile's rows
                    row = _word(b, table, b.add(b.and_(c, I64(7)), I64(rows)))
                    _prefetch(b, b.add(row, b.shl(b.and_(c, I64(-8)), I64(2))))
                return [b.gep(k, [c]) for k in keys]

            sums = _tile(b, rows, vectors, steps, w, pitch, values)
            for j in range(vectors):
                at = b.add(top, I64(WIDTH * j))
                high = _load(b, at)
                for i in range(rows):
                    x = sums[i * vectors + j]
                    _store(b, b.add(out, b.add(b.mul(pitch, I64(i)), I64(WIDTH * j))), x)
                    high = b.select(b.fcmp_ordered(">", x, high), x, high)
                _store(b, at, high)
            return b.add(table, I64(8 * rows)), b.add(out, b.mul(pitch, I64(rows)))

        _ladder(b, n, vectors, (table, out), tile)

    return _instruction((_i,) * 7, types.void, write)


def _values(vectors):
    """(e, table of rows of v, m, p, pitch, out): out += v^T p."""

    def write(b, n, table, steps, w, pitch, out):
        def tile(rows, state):
            offset, out = state

            def values(c):
                row = _pointer(b, b.add(_word(b, table, c), offset), F32)
                _prefetch(b, b.add(_word(b, table, b.add(c, I64(AHEAD))), offset))
                return [b.gep(row, [I64(i)]) for i in range(rows)]

            sums = _tile(b, rows, vectors, steps, w, pitch, values)
            for i in range(rows):
                for j in range(vectors):
                    at = b.add(out, b.add(b.mul(pitch, I64(i)), I64(WIDTH * j)))
                    _store(b, at, b.fadd(_load(b, at), sums[i * vectors + j]))
            return b.add(offset, I64(4 * rows)), b.add(out, b.mul(pitch, I64(rows)))

        _ladder(b, n, vectors, (I64(0), out), tile)

    return _instruction((_i,) * 6, types.void, write)


scores_one, scores_two, scores_three = _scores(1), _scores(2), _scores(3)
values_one, values_two, values_three = _values(1), _values(2), _values(3)


@njit
def scores(vectors, m, table, d, qt, pitch, out, top):
    if vectors == 3:
        scores_three(m, table, d, qt, pitch, out, top)
    elif vectors == 2:
        scores_two(m, table, d, qt, pitch, out, top)
    else:
        scores_one(m, table, d, qt, pitch, out, top)


@njit
def mix(vectors, e, table, m, p, pitch, out):
    if vectors == 3:
        values_three(e, table, m, p, pitch, out)
    elif vectors == 2:
        values_two(e, table, m, p, pitch, out)
    else:
        values_one(e, table, m, p, pitch, out)


# transposition ---------------------------------------------------------------------------------------------------------------


def _transpose(b, rows):
    """LANES vectors: exchange bit by bit the number of the vector and that of the lane."""
    step = 1
    while step < LANES:
        low = [ir.Constant(I32, lane if not lane & step else LANES + lane - step) for lane in range(LANES)]
        high = [ir.Constant(I32, lane + step if not lane & step else LANES + lane) for lane in range(LANES)]
        for i in range(LANES):
            if not i & step:
                x, y = rows[i], rows[i + step]
                rows[i] = b.shuffle_vector(x, y, ir.Constant(INTS, low))
                rows[i + step] = b.shuffle_vector(x, y, ir.Constant(INTS, high))
        step *= 2
    return rows


def _gather(b, table, offset, n, factor, out, pitch):
    rows = [b.fmul(_load_part(b, b.add(_word(b, table, I64(i)), offset), n), factor) for i in range(LANES)]
    for i, row in enumerate(_transpose(b, rows)):
        _store(b, b.add(out, b.mul(pitch, I64(i))), row)


def _scatter(b, source, pitch, factor, table, offset, n):
    rows = [b.fmul(_load(b, b.add(source, b.mul(pitch, I64(i)))), factor) for i in range(LANES)]
    for i, row in enumerate(_transpose(b, rows)):
        _store_part(b, b.add(_word(b, table, I64(i)), offset), row, n)


# n values at `offset` of the LANES rows whose addresses are in a table, times a vector, to the columns of a matrix and back
gather = _instruction((_i, _i, _i, _v, _i, _i), types.void, _gather)
scatter = _instruction((_i, _i, _v, _i, _i, _i), types.void, _scatter)


# softmax ---------------------------------------------------------------------------------------------------------------------


@njit
def powers(p, n, vectors, tops, sums):
    """p = exp(p - top) for n rows; sums += those of the columns."""
    pitch = vectors * WIDTH
    for j in range(vectors):
        top, zero = load(tops + j * WIDTH), splat(f(0.0))
        sum_a, sum_b, sum_c, sum_d = zero, zero, zero, zero
        at, end = p + j * WIDTH, p + n * pitch
        while at + 3 * pitch < end:
            w, x = exp(load(at) - top), exp(load(at + pitch) - top)
            y, z = exp(load(at + 2 * pitch) - top), exp(load(at + 3 * pitch) - top)
            store(at, w)
            store(at + pitch, x)
            store(at + 2 * pitch, y)
            store(at + 3 * pitch, z)
            sum_a, sum_b, sum_c, sum_d = sum_a + w, sum_b + x, sum_c + y, sum_d + z
            at += 4 * pitch
        while at < end:
            w = exp(load(at) - top)
            store(at, w)
            sum_a = sum_a + w
            at += pitch
        store(sums + j * WIDTH, load(sums + j * WIDTH) + ((sum_a + sum_b) + (sum_c + sum_d)))


@njit
def rescale(ot, e, vectors, tops, news, sums):
    """Bring the sums so far to the greatest scores so far, from `tops` to `news`."""
    for j in range(vectors):
        new = load(news + j * WIDTH)
        change = exp(load(tops + j * WIDTH) - new)
        store(tops + j * WIDTH, new)
        store(sums + j * WIDTH, load(sums + j * WIDTH) * change)
        at = ot + j * WIDTH
        for _ in range(e):
            store(at, load(at) * change)
            at += vectors * WIDTH


# the kernel ------------------------------------------------------------------------------------------------------------------


@njit
def _rows(table, n, base, start, inner, outer_step, inner_step):
    """Addresses of n tokens from `start` on."""
    outer, at = start // inner, start % inner
    address = base + outer * outer_step + at * inner_step
    for i in range(n):
        set_arg(table, i, address)
        at += 1
        address += inner_step
        if at == inner:
            at = 0
            address += outer_step - inner * inner_step


@njit
def _head(a, lead):
    """Addresses of q, k, v and out of a head."""
    q, k, v, out = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3)
    for i in range(arg(a, 22) - 1, -1, -1):
        field = a + 8 * (23 + 5 * i)
        size = arg(field, 0)
        at = lead % size
        lead //= size
        q += at * arg(field, 1)
        k += at * arg(field, 2)
        v += at * arg(field, 3)
        out += at * arg(field, 4)
    return q, k, v, out


def attention(a, unit, scratch):
    d, e, l, m = arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7)
    factor, padded = splat(arg_f32(a, 8)), arg(a, 9)
    items, per = arg(a, 10), arg(a, 11)
    queries = scratch  # table of rows of q; those of out, k and v follow
    outs = queries + 8 * PANEL
    keys = outs + 8 * PANEL
    values = keys + 8 * (m + BEYOND)
    tops = (values + 8 * (m + BEYOND) + 63) // 64 * 64
    news = tops + 3 * WIDTH
    sums = news + 3 * WIDTH
    qt = sums + 3 * WIDTH
    ot = qt + (d + LANES - 1) // LANES * LANES * 3 * WIDTH
    p = ot + (e + LANES - 1) // LANES * LANES * 3 * WIDTH
    dump = p + min(m, BLOCK) * 3 * WIDTH
    all_vectors = (l + LANES - 1) // LANES
    panels = (all_vectors + 2) // 3
    blocks = (m + BLOCK - 1) // BLOCK
    head = -1
    q_at, k_at, v_at, out_at = 0, 0, 0, 0
    for item in range(unit * per, min(unit * per + per, items)):
        if item // panels != head:
            head = item // panels
            q_at, k_at, v_at, out_at = _head(a, head)
            _rows(keys, m, k_at, 0, arg(a, 17), arg(a, 18), arg(a, 19))
            _rows(values, m, v_at, 0, arg(a, 17), arg(a, 20), arg(a, 21))
            for i in range(m, m + BEYOND):
                set_arg(keys, i, k_at)
                set_arg(values, i, v_at)
        panel = item % panels
        begin = panel * all_vectors // panels
        vectors = (panel + 1) * all_vectors // panels - begin
        first = begin * LANES
        n = min(l - first, vectors * LANES)
        pitch = vectors * WIDTH
        _rows(queries, n, q_at, first, arg(a, 12), arg(a, 13), arg(a, 14))
        _rows(outs, n, out_at, first, arg(a, 12), arg(a, 15), arg(a, 16))
        for i in range(n, PANEL):
            set_arg(queries, i, q_at)
            set_arg(outs, i, dump)
        for j in range(vectors):
            store(news + j * WIDTH, splat(PADDED if padded else f(-np.inf)))
            store(tops + j * WIDTH, splat(f(-np.inf)))
            store(sums + j * WIDTH, splat(f(0.0)))
            for c in range(0, d, LANES):
                gather(queries + 8 * j * LANES, 4 * c, min(d - c, LANES), factor, qt + c * pitch + j * WIDTH, pitch)
        for i in range(e * vectors):
            store(ot + i * WIDTH, splat(f(0.0)))
        for block in range(blocks):
            begin, end = block * m // blocks, (block + 1) * m // blocks
            scores(vectors, end - begin, keys + 8 * begin, d, qt, pitch, p, news)
            rescale(ot, e if block else 0, vectors, tops, news, sums)
            powers(p, end - begin, vectors, tops, sums)
            mix(vectors, e, values + 8 * begin, end - begin, p, pitch, ot)
        for j in range(vectors):
            rest = exp(splat(PADDED) - load(tops + j * WIDTH)) * splat(f(padded)) if padded else splat(f(0.0))
            share = splat(f(1.0)) / (load(sums + j * WIDTH) + rest)
            for c in range(0, e, LANES):
                scatter(ot + c * pitch + j * WIDTH, pitch, share, outs + 8 * j * LANES, 4 * c, min(e - c, LANES))
