"""The table of the hub's weights against timm's registry and transformers' sources, where they are installed.

Run as a program, this file writes timm's entries anew; those of transformers stay as they are.
"""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refvit.models import ARCHITECTURES
from refvit.vision.preprocess import Preprocess
from refvit.weights import hub

TABLE = Path(hub.__file__).parent / "data" / "hub.json"
CAT = Path(__file__).parents[2] / "examples" / "cat.jpg"
OTHER_NAMES = {"hrnet_w18": "hrnet_w18_ssld", "hrnet_w48": "hrnet_w48_ssld"}  # the same without a bias before the head


def need(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: nothing to compare with")


def timm_entries():
    """Every checkpoint of timm's hub with a classifier, for the models that refvit has; the others cannot be converted."""
    import timm

    for model in ARCHITECTURES:
        for theirs in (model, OTHER_NAMES.get(model)):
            for full in timm.list_models(f"{theirs}.*", pretrained=True) if theirs and timm.is_model(theirs) else ():
                cfg, tag = timm.get_pretrained_cfg(full), full.partition(".")[2]
                if not cfg.num_classes:
                    continue
                height, width = cfg.input_size[1:]
                assert height == width and cfg.crop_mode == "center" and cfg.hf_hub_filename is None, full
                preprocess = {
                    "resize": math.floor(height / cfg.crop_pct),
                    "crop": height,
                    "interpolation": cfg.interpolation,
                    "mean": list(cfg.mean),
                    "std": list(cfg.std),
                }
                name = f"{model}.{tag if theirs == model else theirs.removeprefix(model + '_') + '_' + tag}"
                yield name, row("timm", cfg.hf_hub_id, cfg.license, preprocess)


def row(library, repository, license, preprocess):
    unknown = {"revision": None, "sha256": None}  # the registry has neither
    return {"library": library, "repository": repository, **unknown, "license": license, "preprocess": preprocess}


def test_timm_registry():
    need("timm")
    import timm

    table = json.loads(TABLE.read_text("utf-8"))
    if table["timm"] != timm.__version__:
        pytest.skip(f"the table is of timm {table['timm']}, installed is {timm.__version__}")
    assert {name: row for name, row in table["weights"].items() if row["library"] == "timm"} == dict(timm_entries())


def test_evaluation_is_the_same_bits_as_timms():
    """Each way of evaluating that the table has, with one of the checkpoints that are evaluated so."""
    need("timm")
    import timm
    from timm.data import create_transform, resolve_data_config

    entries = [hub.entry(name) for name, row in hub._table()["weights"].items() if row["library"] == "timm"]
    different = {json.dumps(entry.preprocess): entry for entry in entries}
    assert len(different) > 8
    image = Image.open(CAT).convert("RGB")
    for entry in different.values():
        cfg = timm.get_pretrained_cfg(entry.repository.removeprefix("timm/")).to_dict()
        expected = create_transform(**resolve_data_config({}, pretrained_cfg=cfg))(image).numpy()
        preprocess = Preprocess.from_dict({**entry.preprocess, "channel_order": "rgb"})
        np.testing.assert_array_equal(preprocess(np.asarray(image)), expected, err_msg=entry.name)


def test_transformers_names_the_same_repositories():
    need("transformers")
    from transformers import pipelines
    from transformers.models.deit import modeling_deit
    from transformers.models.mobilevit import modeling_mobilevit

    repository, commit = pipelines.SUPPORTED_TASKS["image-classification"]["default"]["model"]
    found = hub.entry("vit_base_patch16_224.transformers_in1k")
    assert found.repository == repository
    assert found.revision.startswith(commit)
    for module, name in (
        (modeling_deit, "deit_base_distilled_patch16_224.transformers_in1k"),
        (modeling_mobilevit, "mobilevit_s_deeplabv3.transformers_voc"),
    ):
        assert f'"{hub.entry(name).repository}"' in Path(module.__file__).read_text("utf-8")


def write():
    import timm

    table = json.loads(TABLE.read_text("utf-8"))
    rows = {name: row for name, row in table["weights"].items() if row["library"] != "timm"} | dict(timm_entries())
    order = list(ARCHITECTURES)
    rows = {name: rows[name] for name in sorted(rows, key=lambda n: (order.index(n.partition(".")[0]), n))}
    head = {key: value for key, value in table.items() if key != "weights"} | {"timm": timm.__version__}
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    text = json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "weights": {\n' + lines + "\n  }\n}\n"
    TABLE.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
