"""Values moved to another place, and the cursor over nested loops that other kernels use as well."""

from __future__ import annotations

import llvmlite.ir as ir
from numba import njit
from numba.core import types

from refvit.backends.numba.simd import (
    INTS,
    LANES,
    _instruction,
    _load,
    _load_part,
    _store,
    _store_part,
    arg,
    get,
    load,
    load_part,
    put,
    set_arg,
    splat,
    store,
    store_part,
)

# A cursor walks through nested loops over several places at once. It lies in scratch: an address for each place, then an
# index for each loop. In the arguments from `at` on: number of loops, number of places, first address of each place, and for
# each loop, outermost first, its extent and for each place its stride in bytes.


@njit
def seek(a, at, index, cursor):
    """Put the cursor at iteration `index` of all loops together."""
    depth, count = arg(a, at), arg(a, at + 1)
    for j in range(count):
        set_arg(cursor, j, arg(a, at + 2 + j))
    for d in range(depth - 1, -1, -1):
        group = at + 2 + count + d * (count + 1)
        size = arg(a, group)
        i = index % size
        index //= size
        set_arg(cursor, count + d, i)
        for j in range(count):
            set_arg(cursor, j, arg(cursor, j) + i * arg(a, group + 1 + j))


@njit
def advance(a, at, steps, cursor):
    """Move on by `steps` of the innermost loop, at most to its end: then the next loop moves by one."""
    count = arg(a, at + 1)
    for d in range(arg(a, at) - 1, -1, -1):
        group = at + 2 + count + d * (count + 1)
        before = arg(cursor, count + d)
        i = before + steps
        if i < arg(a, group):
            set_arg(cursor, count + d, i)
            for j in range(count):
                set_arg(cursor, j, arg(cursor, j) + steps * arg(a, group + 1 + j))
            return
        set_arg(cursor, count + d, 0)
        for j in range(count):
            set_arg(cursor, j, arg(cursor, j) - before * arg(a, group + 1 + j))
        steps = 1


@njit
def innermost(a, at):
    """Where the arguments of the innermost loop are: its extent, then the strides."""
    count = arg(a, at + 1)
    return at + 2 + count + (arg(a, at) - 1) * (count + 1)


@njit
def remaining(a, at, cursor):
    """Iterations of the innermost loop that are left."""
    return arg(a, innermost(a, at)) - arg(cursor, arg(a, at + 1) + arg(a, at) - 1)


# The fields of the kernels that move runs of values: 0 values of a run; 1 runs; 2 runs of a unit; 3, 4 bytes between values of
# a run in the target and in the source; 5 bytes between the source's channels (interleaved only); 6 cursor over target and
# source


def _walk(move):
    @njit
    def walk(a, unit, scratch):
        i = unit * arg(a, 2)
        end = min(arg(a, 1), i + arg(a, 2))
        seek(a, 6, i, scratch)
        last = innermost(a, 6)
        to_step, from_step = arg(a, last + 1), arg(a, last + 2)
        while i < end:
            m = min(end - i, remaining(a, 6, scratch))
            move(a, arg(scratch, 0), arg(scratch, 1), m, to_step, from_step)
            advance(a, 6, m, scratch)
            i += m

    return walk


@njit
def _copy(a, target, source, m, to_step, from_step):
    n = arg(a, 0)
    full = n // LANES * LANES
    for _ in range(m):
        for j in range(0, full, LANES):
            store(target + 4 * j, load(source + 4 * j))
        if full < n:
            store_part(target + 4 * full, load_part(source + 4 * full, n - full), n - full)
        target += to_step
        source += from_step


@njit
def _spread(a, target, source, m, to_step, from_step):
    n = arg(a, 0)
    full = n // LANES * LANES
    for _ in range(m):
        value = splat(get(source))
        for j in range(0, full, LANES):
            store(target + 4 * j, value)
        if full < n:
            store_part(target + 4 * full, value, n - full)
        target += to_step
        source += from_step


@njit
def _strided(a, target, source, m, to_step, from_step):
    n, t, s = arg(a, 0), arg(a, 3), arg(a, 4)
    for _ in range(m):
        for j in range(n):
            put(target + t * j, get(source + s * j))
        target += to_step
        source += from_step


def _weave(b, p0, p1, p2, target):
    """LANES pixels of three planes, pixel by pixel."""
    x, y, z = (_load(b, p) for p in (p0, p1, p2))
    for k in range(3):
        flat = [k * LANES + lane for lane in range(LANES)]
        two = [i // 3 if i % 3 == 0 else LANES + i // 3 for i in flat]
        three = [lane if i % 3 < 2 else LANES + i // 3 for lane, i in enumerate(flat)]
        both = b.shuffle_vector(x, y, ir.Constant(INTS, two))
        _store(b, b.add(target, ir.IntType(64)(4 * LANES * k)), b.shuffle_vector(both, z, ir.Constant(INTS, three)))


weave = _instruction((types.int64,) * 4, types.void, _weave)


@njit
def _interleave(a, target, source, m, to_step, from_step):
    n, plane = arg(a, 0), arg(a, 5)
    full = n // LANES * LANES
    for _ in range(m):
        for j in range(0, full, LANES):
            p = source + 4 * j
            weave(p, p + plane, p + 2 * plane, target + 12 * j)
        for j in range(full, n):
            p = source + 4 * j
            put(target + 12 * j, get(p))
            put(target + 12 * j + 4, get(p + plane))
            put(target + 12 * j + 8, get(p + 2 * plane))
        target += to_step
        source += from_step


_runs, _spreads, _strides, _pixels = _walk(_copy), _walk(_spread), _walk(_strided), _walk(_interleave)


def runs(a, unit, scratch):
    """Runs that are contiguous on both sides."""
    _runs(a, unit, scratch)


def spread(a, unit, scratch):
    """A value repeated along a contiguous run."""
    _spreads(a, unit, scratch)


def strided(a, unit, scratch):
    """Any strides, value by value."""
    _strides(a, unit, scratch)


def interleaved(a, unit, scratch):
    """Three planes to pixels of three values; a run is one of pixels."""
    _pixels(a, unit, scratch)


def _turn(full):
    """A tile turned over in registers: LANES rows of LANES values, in log2(LANES) rounds that swap ever larger blocks."""

    def write(b, source, source_step, target, target_step, rows, columns):
        zero = rows.type(0)
        v = []
        for i in range(LANES):
            p = b.add(source, b.mul(source_step, rows.type(i)))
            if full:
                v.append(_load(b, p))
            else:
                v.append(_load_part(b, p, b.select(b.icmp_signed("<", rows.type(i), rows), columns, zero)))
        k = 1
        while k < LANES:
            low = [j if not j & k else LANES + j - k for j in range(LANES)]
            high = [j + k if not j & k else LANES + j for j in range(LANES)]
            for i in range(LANES):
                if not i & k:
                    x, y = v[i], v[i + k]
                    v[i] = b.shuffle_vector(x, y, ir.Constant(INTS, low))
                    v[i + k] = b.shuffle_vector(x, y, ir.Constant(INTS, high))
            k *= 2
        for i in range(LANES):
            p = b.add(target, b.mul(target_step, rows.type(i)))
            if full:
                _store(b, p, v[i])
            else:
                _store_part(b, p, v[i], b.select(b.icmp_signed("<", rows.type(i), columns), rows, zero))

    return write


_six = (types.int64,) * 6
turn = _instruction(_six, types.void, _turn(True))
turn_part = _instruction(_six, types.void, _turn(False))


def transposed(a, unit, scratch):
    """The source's contiguous axis is another than the target's.

    0, 1 extents of the target's and of the source's contiguous axis; 2, 3 the same of a block; 4, 5 blocks along them; 6 all
    blocks; 7 blocks of a unit; 8 bytes in the source along the target's contiguous axis; 9 the reverse; 10 cursor over target
    and source
    """
    n, m = arg(a, 0), arg(a, 1)
    from_step, to_step = arg(a, 8), arg(a, 9)
    first = unit * arg(a, 7)
    for item in range(first, min(arg(a, 6), first + arg(a, 7))):
        i0 = item % arg(a, 4) * arg(a, 2)
        rest = item // arg(a, 4)
        j0 = rest % arg(a, 5) * arg(a, 3)
        seek(a, 10, rest // arg(a, 5), scratch)
        target, source = arg(scratch, 0), arg(scratch, 1)
        i1, j1 = min(n, i0 + arg(a, 2)), min(m, j0 + arg(a, 3))
        for j in range(j0, j1, LANES):
            for i in range(i0, i1, LANES):
                s, t = source + from_step * i + 4 * j, target + to_step * j + 4 * i
                if i + LANES <= i1 and j + LANES <= j1:
                    turn(s, from_step, t, to_step, LANES, LANES)
                else:
                    turn_part(s, from_step, t, to_step, min(LANES, i1 - i), min(LANES, j1 - j))
