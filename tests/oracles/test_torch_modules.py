"""Torch modules as candidates of `refvit check`: what is watched by hooks and what cannot be."""

import numpy as np
import pytest

from refvit.crosscheck.candidates.torch_module import TorchModule

torch = pytest.importorskip("torch")
X = np.random.default_rng(3).standard_normal((1, 3, 8, 8)).astype(np.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which goes on existing
def test_a_scripted_child_is_not_watched():
    """It takes no hooks that see keywords; what is around it is seen all the same."""
    scripted = torch.jit.script(torch.nn.Conv2d(4, 5, 3))
    observed = TorchModule(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), scripted)).run(X)
    assert list(observed.values) == ["input", "0", "output"]
    assert any("compiled or scripted; only results are seen" in note for note in observed.notes)


def test_the_dtype_of_a_value_is_told():
    """NumPy has no bfloat16: its values are wider than what they were computed in."""
    observed = TorchModule(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).bfloat16()).run(X)
    assert observed.dtypes == dict.fromkeys(observed.values, "bfloat16") and observed.arithmetic == "bfloat16"
    assert all(a.dtype == np.float32 for a in observed.values.values())
