"""Segments of a small model with everything before them right, and a value at the end that is not."""

import numpy as np

from refvit.crosscheck.causes.hypothesis import Change, Scene
from refvit.crosscheck.causes.table import BY_NAME
from refvit.crosscheck.segments import golden, segments


def run_to(graph, x, shown, wrong):
    """The scene of the last of the values `shown`, the others as they are in float64, it as `wrong` makes it of them all."""
    (name,) = graph.inputs
    known = {name: x.astype(np.float64), **golden(graph, x, keep=shown)}
    segment = segments(graph, shown)[-1]
    return Scene(graph, segment, known, wrong(known))


def explained(scene, cause, close=0.0):
    """What the changes of a cause say that give the value observed, `close` the largest difference allowed."""
    found = []
    for change in BY_NAME[cause].changes(scene):
        if isinstance(change, Change):
            try:
                y = scene.run(change)
            except (KeyError, ValueError):  # it reads what this segment does not have
                continue
            if y.shape == scene.observed.shape and np.abs(y - scene.observed).max() <= close:
                found.append(change.text)
    return found
