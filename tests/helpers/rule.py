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


def same_bits(got, want):
    """Whether two calls gave the same outputs to the last bit."""
    return list(got) == list(want) and all((got[name].view(np.int32) == a.view(np.int32)).all() for name, a in want.items())


class Rule:
    """The rule for one graph and some inputs, three by custom: golden outputs, and what a candidate may lose."""

    def __init__(self, graph, inputs):
        wide = dataclasses.replace(graph, params={n: np.asarray(a, np.float64) for n, a in graph.params.items()})
        narrow, golden = reference.compile_graph(graph), reference.compile_graph(wide)
        self.inputs, self.golden, lost = inputs, [], {}
        for x in inputs:
            want, own = golden(x.astype(np.float64)), narrow(x)
            self.golden.append(want)
            for name, value in want.items():
                lost.setdefault(name, []).append(errors(own[name], value))
        self.allowed = {name: 4 * np.max(values, axis=0) + 4 * ULP for name, values in lost.items()}

    def hold(self, run):
        """run: input -> outputs of the candidate by name. AssertionError names those that are too far off."""
        found = {}
        for x, want in zip(self.inputs, self.golden, strict=True):
            ours = run(x)
            assert list(ours) == list(want)
            for name, value in want.items():
                found.setdefault(name, []).append(errors(ours[name], value))
        worst = {name: np.max(values, axis=0) for name, values in found.items()}
        beyond = [f"{name}: {e}, allowed {self.allowed[name]}" for name, e in worst.items() if (e > self.allowed[name]).any()]
        assert not beyond, "; ".join(beyond)


def hold_to_the_rule(graph, run, inputs):
    """graph: with float32 parameters; run: input -> outputs of the candidate; inputs: three of them."""
    Rule(graph, inputs).hold(run)
