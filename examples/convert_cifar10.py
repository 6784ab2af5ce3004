"""From the weights that train_cifar10.py wrote to the file that comes with refvit.

    python convert_cifar10.py TRAINED.safetensors mobilevit_xxs.cifar10.safetensors

The network was trained on 32x32 images enlarged to 64x64. A photograph is therefore first shrunk to 32 pixels and enlarged as
those were: shrunk straight to 64 it would be sharper than anything the network has seen.
"""

import sys

from refvit.weights.store import load, save
from weights_convert import convert_file

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PREPROCESS = {"resize": 32, "crop": 32, "enlarge": 64, "interpolation": "bilinear"}

if len(sys.argv) != 3:
    sys.exit(__doc__)
trained, out = sys.argv[1:]
weights = convert_file(trained, model="mobilevit_xxs", tag="cifar10", labels=CLASSES, preprocess=PREPROCESS)
path = save(weights, out, dtype="float16")
print(f"{path}: sha256 of the tensors {load(path).sha256}")
