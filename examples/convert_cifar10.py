"""From the weights that train_cifar10.py wrote to the file that comes with refvit.

    python convert_cifar10.py TRAINED.safetensors mobilevit_xxs.cifar10.safetensors

The network was trained on 32x32 images enlarged to 64x64. A photograph is therefore first shrunk to 32 pixels and enlarged as
those were: shrunk straight to 64 it would be sharper than anything the network has seen.
"""

import sys

from refvit.weights.store import save
from weights_convert import convert_file

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PREPROCESS = {"resize": 32, "crop": 32, "enlarge": 64, "interpolation": "bilinear"}

trained, out = sys.argv[1:]
weights = convert_file(trained, model="mobilevit_xxs", tag="cifar10", labels=CLASSES, preprocess=PREPROCESS)
print(save(weights, out, dtype="float16"), weights.sha256)
