"""Real models and texts, where the shared folder is beside the checkout."""

from pathlib import Path

import numba
import pytest
import torch

DATA = Path(__file__).parents[3] / "shared" / "data"


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skip(reason=f"no real models and texts: {DATA} is absent")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)
            if not DATA.is_dir():
                item.add_marker(missing)


@pytest.fixture(scope="session")
def data():
    return DATA


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices of this size gain nothing from a second thread that other work takes away."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])
