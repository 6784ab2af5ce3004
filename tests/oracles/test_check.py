"""Torch modules and torch's own exports as candidates: timm's models in three dtypes match, with a mistake they do not."""

import importlib.util

import numpy as np
import pytest

import refvit
from weights_convert.export import export

if not all(importlib.util.find_spec(m) for m in ("torch", "timm")):
    pytest.skip("torch or timm is not installed: there are no modules to check", allow_module_level=True)

import timm
import torch

MODEL = "mobilevit_xxs.cifar10"
NORM = "stages.3.1.transformer.1.norm1"


@pytest.fixture
def module():
    """timm's model with the weights that come with refvit; they are for smaller images than timm's."""
    net = timm.create_model("mobilevit_xxs", num_classes=10).eval()
    state = export(refvit.load(MODEL, backend="numpy")._weights, "timm")
    net.load_state_dict({name: torch.from_numpy(np.array(a)).float() for name, a in state.items()})
    return net


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_right_module(module, dtype):
    report = refvit.check(module.to(getattr(torch, dtype)), MODEL)
    assert report.ok, report.text()
    assert report.arithmetic == dtype
    assert report.cause == "rounding only"
    assert len(report.findings) > 100
    assert {m.how for m in report.matching.matches} <= {"path", "parameters"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_wrong_activation_is_found_in_every_dtype(module, dtype):
    blocks = module.stages[3][1].transformer
    blocks[1].mlp.act = torch.nn.Hardswish().eval()
    report = refvit.check(module.to(getattr(torch, dtype)), MODEL)
    assert not report.ok
    assert report.first_divergence.name.startswith("stages.3.1.transformer.1.mlp")
    assert report.cause == "activation-swapped"
    assert "hardswish" in report.diagnosis.sentence.lower()


def test_training_mode_is_the_first_thing_that_is_said(module):
    report = refvit.check(module.train(), MODEL)
    assert not report.ok
    assert "training mode" in report.text()
    assert "call .eval() first" in report.text()


@pytest.mark.filterwarnings("ignore")  # of torch's own code
@pytest.mark.parametrize("outputs_only", [False, True])
def test_what_torch_exports(module, tmp_path, outputs_only):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: torch exports nothing, or nothing runs it")
    path = tmp_path / "port.onnx"
    x = torch.zeros(1, 3, 64, 64)
    torch.onnx.export(module, (x,), path, dynamo=True, verbose=False)
    report = refvit.check(path, MODEL, outputs_only=outputs_only)
    assert report.ok, report.text()
    assert (len(report.findings) > 50) is not outputs_only
    if outputs_only:
        return
    module.get_submodule(NORM).eps = 1e-3
    torch.onnx.export(module, (x,), path, dynamo=True, verbose=False)
    report = refvit.check(path, MODEL)
    assert not report.ok
    assert report.cause == "layer-norm-eps"
    assert report.first_divergence.value.startswith(NORM)
