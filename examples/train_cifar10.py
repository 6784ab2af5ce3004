"""Train the embedded demonstration model: mobilevit_xxs on CIFAR-10, shown at 64x64 pixels.

    pip install torch torchvision timm safetensors pillow
    python train_cifar10.py cifar10.zip OUT [--epochs 60] [--init WEIGHTS.safetensors] [--compile]

The archive holds `train/CLASS/*` and `test/CLASS/*` images of 32x32 pixels. After every epoch OUT.safetensors (averaged
weights, timm names) and OUT.json (options, versions and accuracy by epoch) are replaced atomically, so the run can be stopped
at any time. --epochs 0 only measures. refvit itself needs none of this: `weights_convert` reads the result.

Matrix-shaped weights are trained with Muon (Jordan et al. 2024: momentum whose update is orthogonalised by a Newton-Schulz
iteration), everything else with AdamW; one warm-up epoch, then a linear decay to zero; label smoothing 0.1; an exponential
moving average of the weights. The up-sampling filter is drawn at random, so that the model does not depend on one; the test
images are enlarged as refvit does it, by Pillow's bilinear filter.
"""

import argparse
import io
import json
import os
import time
import zipfile

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIZE = 64


def read_split(path, split):
    """The images of one split: uint8 (n, 3, 32, 32), class indices (n,)."""
    images, targets = [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith(f"{split}/") and not n.endswith("/")):
            with Image.open(io.BytesIO(archive.read(name))) as image:
                images.append(np.asarray(image.convert("RGB")))
            targets.append(CLASSES.index(name.split("/")[1]))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(targets)


def augment(x):
    """Crop after a reflected border of 4, flip, brightness and contrast within 20 %; x float (n, 3, 32, 32) in [0, 1].

    Without erased patches or stronger colours: the network is small enough to underfit, and those cost it accuracy.
    """
    n = len(x)
    x = F.pad(x, (4, 4, 4, 4), mode="reflect")
    offset = torch.randint(0, 9, (n, 2))
    rows = (offset[:, :1] + torch.arange(32))[:, None, :, None]
    cols = (offset[:, 1:] + torch.arange(32))[:, None, None, :]
    x = x[torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, cols]
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(3), x)
    brightness = 0.8 + 0.4 * torch.rand(n, 1, 1, 1)
    contrast = 0.8 + 0.4 * torch.rand(n, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    return (((x - mean) * contrast + mean) * brightness).clamp(0, 1)


def upsample(x):
    """To SIZE by one of two filters, so that the network does not depend on either."""
    mode = ("bilinear", "bicubic")[int(torch.randint(0, 2, ()))]
    return F.interpolate(x, size=SIZE, mode=mode, align_corners=False).clamp(0, 1)


def enlarge(images):
    """uint8 (n, 3, 32, 32) -> uint8 (n, 3, SIZE, SIZE), as refvit's pre-processing does it."""
    big = [
        np.asarray(Image.fromarray(x).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        for x in images.permute(0, 2, 3, 1).numpy()
    ]
    return torch.from_numpy(np.stack(big)).permute(0, 3, 1, 2)


def orthogonalise(g):
    """The nearest semi-orthogonal matrix to g, roughly: five quintic Newton-Schulz steps (coefficients of the Muon paper)."""
    wide = g.shape[0] <= g.shape[1]
    x = g if wide else g.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon takes 2-D parameters only; this one sees a convolution kernel (k, c, r, s) as the matrix (k, c*r*s)."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]).reshape(len(p), -1)).reshape(p.shape)
                scale = max(1, len(p) / (p.numel() / len(p))) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def optimizers(net):
    matrices = [p for n, p in net.named_parameters() if p.ndim > 1 and p.shape[1] > 3 and not n.startswith("head.")]
    chosen = {id(p) for p in matrices}  # the stem, depthwise kernels and the head stay with AdamW
    others = [p for p in net.parameters() if id(p) not in chosen]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=2e-3,
    )
    return [Muon(matrices, lr=0.01), adamw]


def evaluate(net, x, y):
    net.eval()
    with torch.inference_mode():
        hits = [(net(x[k : k + 500].float() / 255).argmax(1) == y[k : k + 500]).sum() for k in range(0, len(x), 500)]
    return int(sum(hits)) / len(x)


def save(out, state, log):
    save_file({k: v.contiguous() for k, v in state.items()}, out + ".safetensors.tmp")
    with open(out + ".json.tmp", "w") as f:
        json.dump(log, f, indent=1)
    for suffix in (".safetensors", ".json"):
        os.replace(out + suffix + ".tmp", out + suffix)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("out")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--init", help="start from these weights (safetensors, timm names)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network (about 10 %% faster on two cores)")
    args = parser.parse_args()

    torch.manual_seed(0)
    x_train, y_train = read_split(args.archive, "train")
    x_test, y_test = read_split(args.archive, "test")
    x_test = enlarge(x_test)
    net = timm.create_model("mobilevit_xxs", num_classes=len(CLASSES)).to(memory_format=torch.channels_last)
    average = timm.create_model("mobilevit_xxs", num_classes=len(CLASSES)).to(memory_format=torch.channels_last)
    if args.init:
        net.load_state_dict(load_file(args.init))
    average.load_state_dict(net.state_dict())
    forward = torch.compile(net) if args.compile else net

    opts = optimizers(net)
    per_epoch = len(x_train) // args.batch
    total = args.epochs * per_epoch
    schedule = [
        torch.optim.lr_scheduler.LambdaLR(
            o, lambda i: min((i + 1) / per_epoch, max(0.0, (total - i) / max(1, total - per_epoch)))
        )
        for o in opts
    ]
    init = args.init and os.path.basename(args.init)
    log = {"options": {"epochs": args.epochs, "batch": args.batch, "init": init}, "versions": {}, "epochs": []}
    log["versions"] = {"torch": torch.__version__, "timm": timm.__version__}
    step = 0
    for epoch in range(args.epochs):
        net.train()
        start, order, loss_sum = time.time(), torch.randperm(len(x_train)), 0.0
        for k in range(per_epoch):
            i = order[k * args.batch : (k + 1) * args.batch]
            x = upsample(augment(x_train[i].float() / 255)).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(forward(x), y_train[i], label_smoothing=0.1)
            for o in opts:
                o.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
            for o, s in zip(opts, schedule, strict=True):
                o.step()
                s.step()
            step += 1
            loss_sum += loss.item()
            with torch.no_grad():
                keep = min(0.998, (1 + step) / (10 + step))
                for a, b in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
                    if a.is_floating_point():
                        a.lerp_(b, 1 - keep)
                    else:
                        a.copy_(b)
        log["epochs"].append(
            {
                "epoch": epoch + 1,
                "loss": loss_sum / per_epoch,
                "test_top1": evaluate(average, x_test, y_test),
                "seconds": round(time.time() - start, 1),
            }
        )
        print(log["epochs"][-1], flush=True)
        save(args.out, average.state_dict(), log)
    log["final_test_top1"] = evaluate(average, x_test, y_test)
    save(args.out, average.state_dict(), log)


if __name__ == "__main__":
    main()
