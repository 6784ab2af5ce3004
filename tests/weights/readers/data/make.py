"""Writes the .pth files of this folder. Run with torch installed (they are of torch 2.13): python make.py"""

import argparse
import collections
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def ramp(*size, dtype=torch.float32):
    """-1, -7/8, -6/8, ... exact in every dtype."""
    return (torch.arange(float(np.prod(size))) / 8 - 1).reshape(size).to(dtype)


def save(tree, name, **options):
    torch.save(tree, str(HERE / f"{name}.pth"), **options)


a = ramp(4, 6)
views = collections.OrderedDict(
    a=a,
    t=a.t(),
    s=a[1:, ::2],
    e=a[0, :1].expand(3, 2),
    tied=a,
    h=ramp(3, dtype=torch.float16),
    b=ramp(5, dtype=torch.bfloat16),
    n=torch.tensor(7),
    m=a > 0,
)
views._metadata = {"": {"version": 1}}
save(views, "views")
save(views, "views_legacy", _use_new_zipfile_serialization=False)

net = torch.nn.Linear(2, 1)
with torch.no_grad():
    net.weight.copy_(ramp(1, 2))
    net.bias.fill_(3)
wrapped = {
    "epoch": 3,
    "best_acc1": torch.tensor(71.5),
    "acc": np.float64(0.5),
    "args": argparse.Namespace(lr=0.1, arch="x"),
    "state_dict": torch.nn.DataParallel(net).state_dict(),
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
}
save(wrapped, "wrapped")
save(wrapped, "wrapped_p4", pickle_protocol=4)
save(wrapped, "wrapped_legacy", _use_new_zipfile_serialization=False)

save(torch.nn.Linear(1, 1), "module")
quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
save({"u": torch.ones(3, dtype=torch.uint16), "q": quantised}, "other")
torch.serialization.set_crc32_options(False)
save({"w": ramp(5)}, "no_crc")
