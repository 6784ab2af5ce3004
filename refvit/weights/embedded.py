"""The weights that come with the package, so that everything works without a network."""

from __future__ import annotations

import threading
import warnings
from importlib.resources import as_file, files

from refvit.errors import WeightsError
from refvit.weights.hub import tags
from refvit.weights.store import Weights, load

DEFAULT = "mobilevit_xxs.cifar10"
EMBEDDED = (DEFAULT,)
FILE = "weights=FILE"  # an argument of RefvitError


def how_to_get(model: str) -> str:
    """What to do for weights of `model` that do not come with refvit."""
    file = f"a file by {FILE}"
    if not tags(model):
        return f"give {file}"
    names = [f"{model}.{tag}" for tag in tags(model)]
    more = f" or another of {len(names)} tags in list_models()" if len(names) > 3 else ""
    return f"name those of the Hugging Face hub, {', '.join(names[:3])}{more}, or give {file}"


NOTICE = (
    f"{DEFAULT} is a demonstration: it knows ten classes (airplane, automobile, bird, cat, deer, dog, frog, horse, ship, "
    "truck) and no others. For 1000 classes name other weights, such as mobilevit_s.cvnets_in1k of the Hugging Face hub, or a "
    "model and your own file; `refvit models` lists them."
)


class DemonstrationWarning(UserWarning):
    """The model in use is the embedded one, which knows ten classes."""


_lock = threading.Lock()
_said = False


def say_once() -> None:
    """Warn with NOTICE, the first time in a process."""
    global _said
    with _lock:
        said, _said = _said, True
    if not said:
        warnings.warn(NOTICE, DemonstrationWarning, stacklevel=3)  # the line that called infer


def load_embedded(name: str) -> Weights:
    """The weights called `name`, one of EMBEDDED."""
    with as_file(files("refvit.weights") / "data" / f"{name}.safetensors") as path:
        weights = load(path)
    if weights is None:
        raise WeightsError(f"{name}: the file in the package is not refvit's; install refvit again")
    return weights
