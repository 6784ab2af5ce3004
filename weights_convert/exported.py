"""What `export` writes beside the tensors, and how it is read back.

A layout's names say which tensor is which, and no more. So a file that refvit writes in another project's layout says the rest
in its metadata: config, labels, pre- and post-processing, and where the weights came from. When such a file is converted
again, this goes before what is published for the layout, and before a config.json beside it. It is never believed against the
tensors: they have to be those that were written, bit by bit, and of the model and config that are named.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any

from refvit.errors import RefvitError, WeightsError
from refvit.graph.ir import Array
from refvit.models import architecture, config_from_dict
from refvit.vision.labels import check_labels
from refvit.vision.postprocess import from_dict as post_from_dict
from refvit.vision.preprocess import Preprocess
from refvit.weights.readers.safetensors import strict_json
from refvit.weights.store import Weights, digest
from weights_convert.sidecar import Sidecar

KEY = "refvit_export"  # in the metadata of safetensors
FORMAT_VERSION = 1
KINDS: dict[str, Any] = {
    "model": str,
    "tag": str,
    "config": dict,
    "told": list,
    "preprocess": dict,
    "postprocess": dict,
    "labels": (list, type(None)),
    "source": dict,
    "sha256": str,
}


def record(weights: Weights, layout: str, state: Mapping[str, Array], told: Collection[str], notes: Collection[str]) -> str:
    """The metadata of `state`, which is `weights` in `layout`; as JSON.

    told: fields of the config in which the weights differ from what the tensors and the layout tell
    """
    return json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "layout": layout,
            "model": weights.model,
            "tag": weights.tag,
            "config": dict(weights.config),
            "told": list(told),
            "preprocess": dict(weights.preprocess),
            "postprocess": dict(weights.postprocess),
            "labels": None if weights.labels is None else list(weights.labels),
            "source": dict(weights.source),
            "notes": list(notes),
            "sha256": digest(state),
        }
    )


def read_record(metadata: Mapping[str, str], tensors: Mapping[str, Array]) -> Sidecar | None:
    """What `record` said; None if there is nothing. WeightsError if it is damaged, or of other tensors than these."""
    if KEY not in metadata:
        return None
    try:
        found = strict_json(metadata[KEY].encode())
        if found["format_version"] > FORMAT_VERSION:
            raise WeightsError(
                f"its {KEY} metadata have format {found['format_version']}; this refvit reads up to {FORMAT_VERSION}: "
                "upgrade refvit"
            )
        for name, kind in KINDS.items():
            if not isinstance(found[name], kind):
                raise ValueError(f"{name} is {found[name]!r:.40}")
        labels = found["labels"]
        if not all(isinstance(name, str) for name in [*(labels or ()), *found["told"]]):
            raise ValueError("labels and names of fields must be text")
        arch = architecture(found["model"])
        config = dataclasses.asdict(config_from_dict(arch.config, found["config"]))
        if labels is not None:
            check_labels(labels, config["num_classes"])
        preprocess = Preprocess.from_dict(found["preprocess"]).to_dict()
        postprocess = post_from_dict(arch.task, found["postprocess"]).to_dict()
        assumed = found["source"].get("assumed", [])
        source = found["source"].get("exported_from", found["source"])
        if not isinstance(assumed, list) or not isinstance(source, dict):
            raise ValueError("source.assumed must be a list, source.exported_from an object")
        fields = {*config, *preprocess, *postprocess, "preprocess", "labels"}
        if forged := [name for name in assumed if name not in fields or not isinstance(source.get(name, ""), str)]:
            raise ValueError(f"source.assumed names {forged[0]!r:.40}, which is no field, or has no text that explains it")
    except (RefvitError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        reason = f"{error} missing" if type(error) is KeyError else error
        raise WeightsError(f"its {KEY} metadata are damaged ({reason}); get the file again") from error
    if digest(tensors) != found["sha256"]:
        raise WeightsError(
            f"its tensors are not those that refvit wrote, and what {KEY} in its metadata says belongs to those; get the file "
            "again, or, if they were changed on purpose, save them without these metadata"
        )
    free = {*arch.options, *found["told"]}
    return Sidecar(
        origin=f"{KEY} in the metadata",
        complete=True,
        model=found["model"],
        tag=found["tag"],
        labels=None if labels is None else tuple(labels),
        config={field: value for field, value in config.items() if field in free},
        expected={field: value for field, value in config.items() if field not in free},
        preprocess=preprocess,
        postprocess=postprocess,
        source=source,
        assumed=tuple(assumed),
    )
