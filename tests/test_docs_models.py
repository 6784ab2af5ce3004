"""The table of claims: our columns are what the code counts, and no model is missing."""

import re
from pathlib import Path

import pytest

from refvit.graph.cost import parameter_count, total_cost
from refvit.model import architecture_graph
from refvit.models import ARCHITECTURES

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
ROWS = re.findall(r"^\| `(\w+)` \| (\d+)x(\d+) \| ([\d,]+) \| ([\d,]+) \|(.*)\|$", PAGE.read_text("utf-8"), re.MULTILINE)


def test_every_model_is_there_at_its_published_size():
    listed = {(name, (int(h), int(w))) for name, h, w, *_ in ROWS}
    assert {(name, entry.input_size) for name, entry in ARCHITECTURES.items()} <= listed
    assert len(listed) == len(ROWS) == len(ARCHITECTURES) + 2  # both sizes of the pose models


@pytest.mark.parametrize(("name", "h", "w", "params", "macs", "claims"), ROWS, ids=[f"{r[0]}-{r[1]}" for r in ROWS])
def test_a_row(name, h, w, params, macs, claims):
    entry = ARCHITECTURES[name]
    assert f"{parameter_count(entry.parameters(entry.config)):,}" == params
    assert f"{total_cost(architecture_graph(name, (int(h), int(w)))).macs:,}" == macs
    claimed = re.match(r"\s*(\d+)(?:\.(\d+))?M", claims)
    if claimed and not name.endswith("_upernet"):  # whose auxiliary head was counted
        unit = 10 ** -len(claimed[2] or "")  # some round, some cut
        assert abs(int(params.replace(",", "")) / 1e6 - float(claimed[0].strip(" M"))) < unit
