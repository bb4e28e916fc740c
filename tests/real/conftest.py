"""Real models and texts, where the shared folder is beside the checkout."""

from pathlib import Path

import pytest

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
def _one_thread(one_thread):
    pass
