"""Numbers as a person reads them."""

from __future__ import annotations

import math

from refvit.crosscheck.locate import Finding
from refvit.crosscheck.measure import Error


def amount(f: Finding, arithmetic: str) -> str:
    """How large a finding's own error is, for a person."""
    if f.own.bad:
        return f"{f.own.bad:,} of its {math.prod(f.shape):,} values are NaN or infinite"
    where = f"{share(f.own.largest)} of the largest value (rms {share(f.own.rms)})"
    return f"adds {where}, {number(f.own_ratio)} times what {arithmetic} costs there"


def alike(e: Error) -> str:
    """The statistics that are usual elsewhere: the cosine of the angle between both, and ulps."""
    ulps = f"{number(e.ulps_elsewhere)} ulps of float32, near zero by {number(e.ulps_near_zero)}"
    return f"cosine {cosine(e.cosine)}; off by up to {ulps}"


def cosine(x: float) -> str:
    """How far from 1 it is counts: 1 - 2.1e-09."""
    return f"{x:.4f}" if 1 - x >= 5e-4 else f"1 - {1 - x:.1e}" if 1 - x > 1e-15 else "1"


def share(x: float) -> str:
    """A relative error: a percentage where that reads well."""
    if not math.isfinite(x):
        return "an infinite part"
    return f"{100 * x:.2g} %" if 1e-5 <= x < 1 else f"{100 * x:,.0f} %" if x >= 1 else "nothing" if x == 0 else f"{x:.1e}"


def number(x: float) -> str:
    """A ratio with about two digits."""
    if not math.isfinite(x):
        return "infinitely many"
    return f"{x:,.0f}" if x >= 100 else f"{x:.0f}" if x >= 10 else f"{x:.1f}" if x >= 0.1 else f"{x:.1g}"
