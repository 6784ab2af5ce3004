"""The rule that every kernel, pass and backend is held to: what it may lose is measured, not chosen.

    error(candidate) <= 4 x error(reference in float32) + 4 ulp, both against float64, relative to the largest value

for the largest and the root mean square error, where the reference's error is the largest over three inputs.
"""

import dataclasses

import numpy as np

from refvit.backends import numpy as reference

ULP = float(np.finfo(np.float32).eps)


def errors(got, golden):
    """(largest, root mean square) error relative to the largest golden value. NaN and infinities fail."""
    assert got.shape == golden.shape
    assert np.isfinite(got).all()
    top = np.abs(golden).max() or 1.0
    difference = np.abs(got.astype(np.float64) - golden)
    return np.array([difference.max(), np.sqrt(np.mean(difference**2))]) / top


def hold_to_the_rule(graph, run, inputs):
    """graph: with float32 parameters; run: input -> outputs of the candidate; inputs: three of them."""
    wide = dataclasses.replace(graph, params={n: np.asarray(a, np.float64) for n, a in graph.params.items()})
    narrow, golden = reference.compile_graph(graph), reference.compile_graph(wide)
    found, lost = {}, {}
    for x in inputs:
        want, own, ours = golden(x.astype(np.float64)), narrow(x), run(x)
        assert list(ours) == list(want)
        for name, value in want.items():
            found.setdefault(name, []).append(errors(ours[name], value))
            lost.setdefault(name, []).append(errors(own[name], value))
    for name, values in found.items():
        allowed = 4 * np.max(lost[name], axis=0) + 4 * ULP
        assert (np.max(values, axis=0) <= allowed).all(), f"{name}: {np.max(values, axis=0)}, allowed {allowed}"
