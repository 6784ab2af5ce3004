"""HRNet against its original implementations: every module in float64, and the answers in float32.

A rule says which of our values a module of the original returns. No module is absent: what they compute is formed here too,
and identities, dropout and lists of layers return what has a name already.
"""

import numpy as np
import pytest

import refvit
from refvit.models import architecture

ULP = np.finfo(np.float32).eps  # errors are relative to the largest value
CEILING = 2e-5  # of float32's own error, or a fault of float32 would excuse itself; what is seen is below 3e-6
ABSENT = {}


def backbone(name):
    """What all originals share."""
    config = architecture(name).config
    return (
        (r"(.*relu)#0", r"\1"),  # one module, called for every ReLU of its block
        (r"(.*relu)#([1-3])", r"\1_\2"),
        (r"(.*\.downsample)", r"\1.1"),  # a list of layers returns what its last one does
        (r"layer1", f"layer1.{config.layer1[0] - 1}"),
        (r"transition1\.0(\.2)?", "transition1:0"),
        (r"transition(\d)\.([123])(\.0(\.2)?)?", r"transition\1:\2"),  # a new branch is a list in a list
        (r"(stage\d\.\d)\[(\d)\]", r"\1:\2"),
        *((rf"stage{s + 2}\[(\d)\]", rf"stage{s + 2}.{count - 1}:\1") for s, count in enumerate(config.modules)),
        *(rule for i in range(4) for j in range(i) for rule in coarser(i, j)),
    )


def coarser(i, j):
    """Branch j as the coarser branch i takes it: lists of convolution, norm and ReLU, the last of them without ReLU."""
    path, last = rf"(.*\.fuse_layers\.{i}\.{j})", i - j - 1
    yield from ((rf"{path}\.{k}(\.2)?", rf"\1.{('relu', 'relu_1')[k]}") for k in range(last))
    yield rf"{path}\.{last}", rf"\1.{last}.1"


def finer(pattern, name):
    """A rule for every pair of a branch i and a coarser branch j, which is enlarged."""
    return tuple((rf"(.*\.fuse_layers\.{i}\.{j}){pattern}", name) for i in range(4) for j in range(i + 1, 4))


UPSAMPLE_IS_A_MODULE = finer(r"\.2", r"\1")
UPSAMPLE_IS_A_FUNCTION = finer("", r"\1.1")  # called on what the list of convolution and norm returns
CLASSIFIER = (
    *UPSAMPLE_IS_A_MODULE,
    (r"(incre_modules\.\d)", r"\1.0"),
    *((rf"downsamp_modules\.{i}(\.2)?", f"relu_{i + 2}") for i in range(3)),  # the stem has the first two
    (r"final_layer(\.2)?", "relu_5"),
)
TIMM = (
    *((rf"((?:.*\.)?)act{k + 1}", rf"\1{relu}") for k, relu in enumerate(("relu", "relu_1", "relu_2"))),
    (r"(stage\d\.\d)\.fuse_act#(\d)", r"\1:\2"),
    (r"(stage\d\.\d)\.fuse_layers\.(\d)\.\2", r"\1.branches.\2"),  # an identity
    (r"(stage.*)\.drop_block", r"\1.bn1"),  # identities of a basic block
    (r"(stage.*)\.aa", r"\1.relu"),
    (r"(.*)\.drop_block", r"\1.bn2"),  # and of a bottleneck
    (r"(.*)\.aa", r"\1.relu_1"),
    (r"global_pool(\.pool|\.flatten)?|head_drop", "mean"),
)
SEGMENTATION = (*UPSAMPLE_IS_A_FUNCTION, (r"(last_layer|aux_head)\.2", r"\1.relu"))
OCR = (
    (r"conv3x3_ocr(\.2)?", "relu_2"),
    (r"ocr_gather_head", "reshape_2"),
    (r"(.*\.(?:f_\w+|conv_bn_dropout))\.1(\.1)?", r"\1.relu"),  # norm and ReLU are a list
    (r"(.*\.f_\w+)\.3(\.1)?", r"\1.relu_1"),
    (r"ocr_distri_head(\.conv_bn_dropout\.2)?", "ocr_distri_head.conv_bn_dropout"),  # dropout
)

CASES = {  # fixture: model, rules, outputs of modules
    "hrnet_w18_small": ("hrnet_w18_small", CLASSIFIER, 374),
    "hrnet_w18_small.timm": ("hrnet_w18_small", (*TIMM, *CLASSIFIER), 430),
    "hrnet_w18_small_seg": ("hrnet_w18_small_seg", SEGMENTATION, 296),
    "hrnet_w32_pose": ("hrnet_w32_pose", UPSAMPLE_IS_A_MODULE, 1136),
    "hrnet_w48_ocr": ("hrnet_w48_ocr", (*SEGMENTATION, *OCR), 1212),
}


@pytest.mark.parametrize("fixture", CASES)
def test_every_module_equals_the_original(golden, compare_modules, fixture):
    name, rules, total = CASES[fixture]
    assert sum(map(len, golden(fixture).modules().values())) == total
    assert compare_modules(fixture, name, (*rules, *backbone(name)), ABSENT) == total


def outputs(model, x):
    """The original's outputs: that of OCR also returns what the auxiliary head says, before the answer."""
    return list(model.intermediates(x, "*_head").values()) if model.config.head == "ocr" else [model(x)]


def error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("fixture", CASES)
def test_float32_is_as_near_as_float32_allows(golden, fixture):
    """At most four times float32's largest error on three other inputs, and four units in the last place."""
    case, name = golden(fixture), CASES[fixture][0]
    state, stored = case.state(), case.expected().values()
    single, double = (refvit.load(name, state, dtype=dtype, backend="numpy") for dtype in ("float32", "float64"))

    def samples(model, x):
        ys = outputs(model, x)
        assert all(y.dtype == model.dtype for y in ys)
        return [y.reshape(-1)[index].astype(np.float64) for y, (_, index, _) in zip(ys, stored, strict=True)]

    rng, own = np.random.default_rng(0), []
    for _ in range(3):
        x = rng.standard_normal(case.meta["input_shape"]).astype(np.float32)
        own.append(list(map(error, samples(single, x), samples(double, x))))
    own = np.max(own, axis=0)
    found = np.array([error(y, want) for y, (_, _, want) in zip(samples(single, case.input()), stored, strict=True)])
    assert (own < CEILING).all(), own
    assert (found <= 4 * own + 4 * ULP).all(), f"{found} against {own} on other inputs"
