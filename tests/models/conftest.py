"""Module-by-module comparison with what hooks on the original implementations saw."""

import re

import numpy as np
import pytest

import refvit

BOUND = 1e-10  # of the largest value; what is seen is below 1e-13


@pytest.fixture(scope="session")
def compare_modules(golden):
    """compare_modules(fixture, model, same, absent): every output of every module of the original against ours, in float64.

    same: (pattern, name) pairs, tried in order on the module's path; the first whose pattern matches all of it says under which
        name ours has the value. The path of a module that ran several times ends in "#0", "#1", ... A path that no pattern
        matches is looked up as it is. A third item is a function that brings our value into the original's order.
    absent: patterns of what has no counterpart, each with the reason; every one of them must be needed.

    Returns the number of outputs that were compared.
    """

    def compare(fixture, model, same, absent, **options):
        case = golden(fixture)
        ours = refvit.load(model, case.state(), dtype="float64", backend="numpy", **options).intermediates(case.input())
        unused, compared = set(absent), 0
        calls = [
            (f"{path}#{i}" if len(outputs) > 1 else path, *output)
            for path, outputs in case.modules().items()
            for i, output in enumerate(outputs)
        ]
        for module, shape, index, expected in calls:
            if hits := {pattern for pattern in absent if re.fullmatch(pattern, module)}:
                unused -= hits
                continue
            rule = next((r for r in same if re.fullmatch(r[0], module)), (re.escape(module), module))
            name = re.fullmatch(rule[0], module).expand(rule[1])
            assert name in ours, f"{module}: {name} is no value of ours"
            got = rule[2](ours[name]) if len(rule) > 2 else ours[name]
            assert got.size == np.prod(shape), f"{module}: {got.shape}, the original gives {shape}"
            error = np.abs(got.reshape(-1)[index] - expected).max() / np.abs(expected).max()
            assert error < BOUND, f"{module} ({name}): {error:.1e}"
            compared += 1
        assert not unused, f"absent, but not in the fixture: {unused}"
        return compared

    return compare
