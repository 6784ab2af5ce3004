"""The transforms of Winograd convolutions on registers of channels: B' d, A' m, and what is done to a finished output.

The coefficients are multiplied out by hand, for each form with as few operations as were found.
"""

from __future__ import annotations

from typing import Any

from numba.core import types

from refvit.backends.numba.simd import (
    I64,
    LANES,
    VEC,
    _constant,
    _fma,
    _i,
    _instruction,
    _load,
    _load_part,
    _store,
    _store_part,
    _v,
)


def _forward(b: Any, d: list[Any]) -> list[Any]:
    """B' d: of each point the product of (x - every other point), a polynomial, times d, the values of x^0, x^1, ..."""
    if len(d) == 4:
        return [b.fsub(d[2], d[0]), b.fadd(d[1], d[2]), b.fsub(d[2], d[1]), b.fsub(d[3], d[1])]
    alpha, beta = 0.625, 1.5

    def times(factor: float, x: Any, y: Any) -> Any:
        return _fma(b, _constant(factor), x, y)

    result = [times((alpha * beta) ** 2, d[0], times(-(alpha**2) - beta**2, d[2], d[4]))]
    for point, other in ((alpha, beta), (beta, alpha)):
        even, odd = times(-(other**2), d[2], d[4]), times(-(other**2), d[1], d[3])
        result += [times(point, odd, even), times(-point, odd, even)]
    return [*result, times((alpha * beta) ** 2, d[1], times(-(alpha**2) - beta**2, d[3], d[5]))]


def _inverse(b: Any, m: list[Any]) -> list[Any]:
    """A' m: sums of the points' powers 0, 1, ... times m; infinity counts in the highest power only."""
    if len(m) == 3:
        return [b.fadd(m[0], m[1]), b.fadd(m[1], m[2])]
    if len(m) == 4:
        return [b.fadd(m[0], b.fadd(m[1], m[2])), b.fadd(b.fsub(m[1], m[2]), m[3])]
    alpha, beta = 0.625, 1.5
    even_a, odd_a, even_b, odd_b = b.fadd(m[1], m[2]), b.fsub(m[1], m[2]), b.fadd(m[3], m[4]), b.fsub(m[3], m[4])

    def mixed(power: int, x: Any, y: Any) -> Any:
        return _fma(b, _constant(alpha**power), x, b.fmul(_constant(beta**power), y))

    last = _fma(b, _constant(alpha**3), odd_a, _fma(b, _constant(beta**3), odd_b, m[5]))
    return [b.fadd(m[0], b.fadd(even_a, even_b)), mixed(1, odd_a, odd_b), mixed(2, even_a, even_b), last]


def _at(b: Any, p: Any, *steps: tuple[int, Any]) -> Any:
    for count, step in steps:
        if count:
            p = b.add(p, b.mul(I64(count), step))
    return p


def _forward_line(side: int) -> Any:
    """Intrinsic (p, step, n, to, to_step): B' d of n channels of d[i] at p + i step, stored at to + i to_step."""

    def write(b: Any, p: Any, step: Any, n: Any, to: Any, to_step: Any) -> None:
        for i, value in enumerate(_forward(b, [_load_part(b, _at(b, p, (i, step)), n) for i in range(side)])):
            _store(b, _at(b, to, (i, to_step)), value)

    return _instruction((_i,) * 5, types.void, write)


def _inverse_line(side: int) -> Any:
    """Intrinsic (p, step, to, to_step): A' m of m[i] at p + i step, stored at to + i to_step."""

    def write(b: Any, p: Any, step: Any, to: Any, to_step: Any) -> None:
        for i, value in enumerate(_inverse(b, [_load(b, _at(b, p, (i, step))) for i in range(side)])):
            _store(b, _at(b, to, (i, to_step)), value)

    return _instruction((_i,) * 4, types.void, write)


def _last_line(side: int) -> Any:
    """Intrinsic: n channels of a row of outputs from A' m, m[i] at p + i step; bias, residual and a lower bound.

    Outputs lie `pixel` apart, residuals at q, unless it is 0, q_pixel apart. Only the first `columns` are read and written.
    """

    def write(
        b: Any, p: Any, step: Any, to: Any, pixel: Any, q: Any, q_pixel: Any, columns: Any, bias: Any, least: Any, n: Any
    ) -> None:
        values = _inverse(b, [_load(b, _at(b, p, (i, step))) for i in range(side)])
        values = [b.fadd(bias, value) for value in values]
        added = b.icmp_signed("!=", q, I64(0))
        for i, value in enumerate(values):
            with b.if_then(b.icmp_signed(">", columns, I64(i)), likely=True):
                before = b.basic_block
                with b.if_then(added):
                    total = b.fadd(value, _load_part(b, _at(b, q, (i, q_pixel)), n))
                    then = b.basic_block
                result = b.phi(VEC)
                result.add_incoming(value, before)
                result.add_incoming(total, then)
                result = b.select(b.fcmp_ordered(">", least, result), least, result)  # NaN stays
                at = _at(b, to, (i, pixel))
                if LANES == 16:  # a mask costs nothing
                    _store_part(b, at, result, n)
                    continue
                with b.if_else(b.icmp_signed("==", n, I64(LANES))) as (whole, rest):
                    with whole:
                        _store(b, at, result)
                    with rest:
                        _store_part(b, at, result, n)

    return _instruction((*(_i,) * 7, _v, _v, _i), types.void, write)


def _strided(b: Any, p: Any, row: Any, pixel: Any, n: Any, v: Any, place: Any, part: Any) -> None:
    """5x5 pixels at p to the values of S(2x2): of place (i, j) at v + (3 i + j) place, its parts `part` apart.

    Pixels 0, 2, 4 of a line meet the kernel's even taps, pixels 1, 3 the odd one. Place 0: d0 - d2, and d1; place 1: d2;
    place 2: d4 - d2, and d3.
    """
    d = [[_load_part(b, _at(b, p, (i, row), (j, pixel)), n) for j in range(5)] for i in range(5)]

    def line(x: list[Any]) -> list[Any]:
        return [b.fsub(x[0], x[2]), x[1], x[2], b.fsub(x[4], x[2]), x[3]]

    columns = [line([d[i][j] for i in range(5)]) for j in range(5)]
    values = [line([columns[j][i] for j in range(5)]) for i in range(5)]
    slots = ((0, 1), (2,), (3, 4))
    for i, down in enumerate(slots):
        for j, across in enumerate(slots):
            for k, (y, x) in enumerate((y, x) for y in down for x in across):
                _store_part(b, _at(b, v, (3 * i + j, place), (k, part)), values[y][x], n)


forward_6, forward_4 = _forward_line(6), _forward_line(4)
forward_strided = _instruction((_i,) * 7, types.void, _strided)
inverse_6, inverse_4, inverse_3 = _inverse_line(6), _inverse_line(4), _inverse_line(3)
last_6, last_4, last_3 = _last_line(6), _last_line(4), _last_line(3)
