"""The look at a pickle's opcodes beside torch's own unpickler: the same tensors, or left to torch to judge."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._weights_only_unpickler import _get_allowed_globals

from quantkit.dtypes import DTYPES
from quantkit.errors import BadInputError
from quantkit.weights.pickle_look import ALLOWED, NotUnderstood, look_at_pickle
from quantkit.weights.pickled import read_pickled_header

STORED = [dtype for dtype in DTYPES.values() if "float8" not in str(dtype)]  # those have untyped storages


def saved(path, state):
    torch.save(state, path)
    return path


def assert_as_torch(path):
    """What torch refuses is refused or left to it, and what is understood is what torch finds."""
    try:
        looked = look_at_pickle(path)
    except NotUnderstood:
        return None
    except BadInputError:
        with pytest.raises(BadInputError):
            read_pickled_header(path)
        return None
    try:
        assert read_pickled_header(path) == looked
    except BadInputError:  # a look is no permission
        return None
    return looked


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_every_dtype(tmp_path, kind):
    state = kind((str(dtype), torch.arange(-3, 3).view(2, 3).to(dtype)) for dtype in STORED)
    assert assert_as_torch(saved(tmp_path / "a.bin", state)).keys() == state.keys()


def test_views_ties_parameters_and_the_state_of_a_module(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    state = {
        "base": base, "rows": base[2:], "value": base[3, 5], "tied": base, "scalar": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)), "empty": torch.zeros(3, 0),
        "of one": torch.ones(1, 4).T.contiguous(),
    }  # fmt: skip
    assert len(assert_as_torch(saved(tmp_path / "a.bin", state))) == len(state)
    assert len(assert_as_torch(saved(tmp_path / "b.bin", module.state_dict()))) == len(module.state_dict())


@pytest.mark.parametrize(
    "state",
    [{}, [torch.ones(1)], {"a": {"b": torch.ones(1)}}, {"a": 3}, {"a": None}, {1: torch.ones(1)}, 7, "text",
     {"a": torch.ones(2, 3).T}, {"a": torch.ones(3).to_sparse()}, {"a": torch.float32}, {"a": {1, 2}},
     {"a": torch.ones(1, dtype=torch.complex64)}, {"a": torch.ones(2, dtype=torch.float8_e4m3fn)}, {(1, 2): 3}],
    ids=str,
)  # fmt: skip
def test_other_contents(tmp_path, state):
    assert_as_torch(saved(tmp_path / "a.bin", state))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(STORED), st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_any_slices(tmp_path_factory, rows):
    state = {}
    for number, (dtype, start, count) in enumerate(rows):
        state[str(number)] = torch.arange(20).view(10, 2).to(dtype)[start : start + count]
    assert assert_as_torch(saved(tmp_path_factory.getbasetemp() / "look.bin", state)).keys() == state.keys()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_files(tmp_path_factory, data):
    path = saved(tmp_path_factory.getbasetemp() / "spoilt.bin", {"a": torch.ones(3, 2), "b": torch.ones(2).half()})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 700) | st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path.write_bytes(raw)
    assert_as_torch(path)


def test_no_name_is_refused_that_torch_allows():
    assert [name for name in _get_allowed_globals() if not ALLOWED.fullmatch(name)] == []
