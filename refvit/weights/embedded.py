"""The weights that come with the package, so that everything works without a network."""

from __future__ import annotations

from importlib.resources import as_file, files

from refvit.errors import WeightsError
from refvit.weights.store import Weights, load

DEFAULT = "mobilevit_xxs.cifar10"
EMBEDDED = (DEFAULT,)

NOTICE = (
    f"{DEFAULT} is a small demonstration model: it knows ten classes (airplane, automobile, bird, cat, deer, dog, frog, horse, "
    "ship, truck) and nothing else. For the 1000 classes of ImageNet give a model and its weights, for example timm's "
    'mobilevit_s.cvnets_in1k as a safetensors file: model="mobilevit_s", weights="model.safetensors".'
)


def load_embedded(name: str) -> Weights:
    """The weights called `name`, one of EMBEDDED."""
    with as_file(files("refvit.weights") / "data" / f"{name}.safetensors") as path:
        weights = load(path)
    if weights is None:
        raise WeightsError(f"{name}: the file in the package is not refvit's; install refvit again")
    return weights
