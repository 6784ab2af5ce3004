"""refvit: a framework-free reference of ViT, HRNet, HRViT and MobileViT in NumPy, and inference with it.

    >>> import refvit
    >>> refvit.infer("cat.jpg").top(3)

`refvit.ops` is the vocabulary, `refvit.models` the models written in it, `refvit.graph` what tracing makes of them.
"""

__version__ = "0.1.0"

from refvit.api import ModelInfo, infer, info, list_models, load
from refvit.conversion import Report, convert
from refvit.crosscheck.check import check
from refvit.dumping import dump
from refvit.model import Model
from refvit.vision.answers import Area, Box, Prediction
from refvit.vision.attention import Attention
from refvit.vision.result import Result
from refvit.weights.embedded import DemonstrationWarning

__all__ = [
    "Area", "Attention", "Box", "DemonstrationWarning", "Model", "ModelInfo", "Prediction", "Report", "Result", "__version__",
    "check", "convert", "dump", "infer", "info", "list_models", "load",
]  # fmt: skip
