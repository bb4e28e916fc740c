"""What is kept of a source that is read many times."""

import pytest
import torch

from quantkit.tensors import TensorInfo
from quantkit.weights.kept import KeptSource

NAMES = ("a", "b", "c")
CPU = torch.device("cpu")


class Counted:
    """Three tensors of eight values in 16 bits each, and how often each was read."""

    def __init__(self):
        self.infos = {name: TensorInfo(name, "F16", (8,), "file") for name in NAMES}
        self.reads = dict.fromkeys(NAMES, 0)

    def read(self, name):
        self.reads[name] += 1
        return torch.full((8,), float(ord(name)), dtype=torch.float16)


def reads_of(allowance):
    source = Counted()
    kept = KeptSource(source, allowance, CPU)
    for _ in range(5):
        for name in NAMES:
            assert torch.equal(kept.read(name).float(), torch.full((8,), float(ord(name))))
    return kept, [source.reads[name] for name in NAMES]


@pytest.mark.parametrize(
    ("allowance", "reads"),
    [(0, [5, 5, 5]), (15, [5, 5, 5]), (16, [1, 5, 5]), (47, [1, 1, 5]), (48, [1, 1, 1]), (10**6, [1, 1, 1])],
)
def test_the_first_that_fit_are_kept(allowance, reads):
    assert reads_of(allowance)[1] == reads


@pytest.mark.parametrize(("allowance", "dtype"), [(95, torch.float16), (96, torch.float32)])
def test_tensors_are_widened_once_if_there_is_room_for_all(allowance, dtype):
    kept, _ = reads_of(allowance)
    assert {kept.read(name).dtype for name in NAMES} == {dtype}
    assert kept.read("a") is kept.read("a")


def test_infos_are_those_of_the_source():
    source = Counted()
    assert KeptSource(source, 0, CPU).infos is source.infos
