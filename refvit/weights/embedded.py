"""The weights that come with the package, so that everything works without a network."""

from __future__ import annotations

import threading
import warnings
from importlib.resources import as_file, files

from refvit.errors import WeightsError
from refvit.weights.store import Weights, load

DEFAULT = "mobilevit_xxs.cifar10"
EMBEDDED = (DEFAULT,)

ON_THE_HUB = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s")  # as https://huggingface.co/timm/NAME.cvnets_in1k


def how_to_get(model: str) -> str:
    """What to do for weights of `model` that do not come with refvit."""
    if model not in ON_THE_HUB:
        return "give a safetensors file by weights=FILE (--weights)"
    return (
        f"timm's ImageNet weights are the model.safetensors of https://huggingface.co/timm/{model}.cvnets_in1k: download it "
        f'and give model="{model}", weights="model.safetensors" (--model, --weights)'
    )


NOTICE = (
    f"{DEFAULT} is a demonstration: it knows ten classes (airplane, automobile, bird, cat, deer, dog, frog, horse, ship, "
    f"truck) and no others. For 1000 classes, {how_to_get('mobilevit_s')}."
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
