"""The models that are broken: real small variants on small images, fewer layers where a layer more would show nothing new."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.bugs.trained import as_arrays, picture, trained
from refvit.graph.ir import Array, Graph, ShapeOnly
from refvit.graph.trace import trace
from refvit.models import architecture
from refvit.vision.preprocess import Preprocess
from refvit.weights.store import Weights, save

CLASSES = 40


@dataclass(frozen=True)
class Subject:
    """A model of the registry with some fields of its config replaced, and the size (h, w) of the image."""

    name: str
    model: str
    size: tuple[int, int]
    fields: tuple[tuple[str, Any], ...] = ()
    forms: tuple[str, ...] = ()  # what there is of it, beside ONNX files and dumps: "timm", "transformers", "own"

    @property
    def config(self) -> Any:
        return replace(architecture(self.model).config, **dict(self.fields))


def _subject(name: str, model: str, size: tuple[int, int], forms: str, **fields: Any) -> Subject:
    if "hrnet_w32_pose" not in model and "seg" not in model and "deeplab" not in model:
        fields["num_classes"] = CLASSES
    return Subject(name, model, size, tuple(fields.items()), tuple(forms.split()))


VIT = {"depth": 3}
ONE = ((1, 1, 1, 1), (1, 1, 1, 1))  # block in each branch of HRViT's last modules
POSE: dict[str, Any] = {"layer1": (1, 64), "modules": (1, 1, 1), "blocks": 1}
SUBJECTS = {s.name: s for s in (
    _subject("vit", "vit_tiny_patch16_224", (80, 80), "timm transformers", image_size=80, **VIT),
    _subject("vit, other size", "vit_tiny_patch16_224", (96, 64), "timm", image_size=80, **VIT),
    _subject("vit of transformers", "vit_tiny_patch16_224", (96, 64), "transformers", image_size=80, position_resize="bicubic",
             layer_norm_eps=1e-12, **VIT),
    _subject("deit distilled", "deit_tiny_distilled_patch16_224", (64, 64), "timm transformers", image_size=64, **VIT),
    _subject("mobilevit", "mobilevit_xxs", (96, 128), "timm transformers"),
    _subject("mobilevit, square", "mobilevit_xxs", (128, 128), "timm transformers"),
    _subject("mobilevit deeplabv3", "mobilevit_xxs_deeplabv3", (96, 128), "transformers"),
    _subject("hrnet", "hrnet_w18_small", (64, 96), "timm"),
    _subject("hrnet pose", "hrnet_w32_pose", (64, 96), "own", **POSE),
    _subject("hrnet segmentation", "hrnet_w18_small_seg", (88, 72), "own"),
    _subject("hrnet segmentation, corners", "hrnet_w18_small_seg", (88, 72), "own", align_corners=True),
    _subject("hrvit", "hrvit_b1", (64, 96), "own", last=ONE),
    _subject("hrvit segformer", "hrvit_b1_segformer", (64, 96), "own", last=ONE),
)}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """A subject with weights: the truth that a candidate is compared with."""

    subject: Subject
    weights: Weights
    graph: Graph  # expanded, with float64 parameters
    x: Array  # the image, float32 (1, 3, h, w)

    @functools.cached_property
    def golden(self) -> dict[str, Array]:
        """Every value of the graph, in float64."""
        from refvit.backends.numpy import compile_graph

        everything = {name: name for name in self.graph.nodes}
        return dict(compile_graph(self.graph.with_outputs(everything))(self.x.astype(np.float64)))

    def file(self, folder: str | Path | None = None) -> Path:
        """The weights in a file of refvit's, for `weights=` of `refvit.check`."""
        return save(self.weights, Path(folder or tempfile.mkdtemp()) / "weights.safetensors")


def reference(subject: Subject, rng: np.random.Generator, channel_order: str = "rgb") -> Reference:
    """Fresh weights and a fresh image."""
    arch, config = architecture(subject.model), subject.config
    shape = (1, 3, *subject.size)
    empty = {n: ShapeOnly(s) for n, s in arch.parameters(config)}
    graph = trace(arch.forward, shape, empty, expand=True, config=config)
    params = trained(graph, rng)
    for name in set(empty) - set(params):  # not read for this image
        params[name] = rng.normal(0, 0.25, empty[name].shape).astype(np.float32)
    short = min(subject.size)
    cropped = arch.task == "classification"
    preprocess = Preprocess(
        resize=int(short / 0.875) if cropped else subject.size, crop=subject.size if cropped else None, interpolation="bicubic",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channel_order=channel_order,
    )  # fmt: skip
    post = {"flip": False} if arch.task == "pose" else {}  # needs no names of joints
    weights = Weights(subject.model, "random", dataclasses.asdict(config), preprocess.to_dict(), None, {}, params, post)
    return Reference(subject, weights, as_arrays(graph, params), picture(rng, shape))
