"""What holds for every test, and what many of them ask for."""

import os
import signal

import pytest
from hypothesis import settings

pytest_plugins = ("loopback.plugin",)

# The same examples in every run, so that a change is never refused by luck; HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("repeat", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
# What a shell starts in the background ignores Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as quantkit.cli.main does; read when torch is imported


@pytest.fixture(scope="module")
def one_thread():
    """For models this small a second thread costs more than it gives."""
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


def pytest_collection_modifyitems(items):
    """The longest file first: of two processes none shall wait for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_memory.py")
