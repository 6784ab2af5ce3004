"""What a configuration may not ask for, because no tensor's shape would contradict it and memory grows with it."""

import dataclasses

import pytest

from refvit.errors import ConfigError
from refvit.models import architecture, config_from_dict


@pytest.mark.parametrize(
    ("model", "field", "largest", "too_much"),
    [
        ("hrvit_b1", "stripes", (32, 32, 32, 32), (1, 2, 7, 33)),
        ("vit_base_patch16_224", "num_heads", 64, 65),
        ("mobilevit_s", "patch", (64, 64), (2, 65)),
        ("mobilevit_s_deeplabv3", "rates", (256, 256, 256), (6, 12, 257)),
    ],
)
def test_sizes_that_no_tensor_has(model, field, largest, too_much):
    config = architecture(model).config
    assert getattr(dataclasses.replace(config, **{field: largest}), field) == largest
    plain = dataclasses.asdict(config) | {field: too_much}
    with pytest.raises(ConfigError, match=r"up to \d+"):
        config_from_dict(config, plain)
