"""Fixtures: a Hub on this machine, and this process's client pointed to it."""

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants

from loopback.hub import Hub


@pytest.fixture
def loopback(tmp_path_factory):
    """A Hub with nothing in it yet."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    hub.start()
    yield hub
    hub.stop()
    for mistake in hub.mistakes:
        raise mistake


@pytest.fixture
def hub_client(loopback, tmp_path, monkeypatch):
    """The genuine client in this process, which takes `loopback` for the Hub; so do quantkit's own calls."""
    from quantkit.weights import remote, transfer

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, loopback.url)
    changes = {
        "ENDPOINT": loopback.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", loopback.token)
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    huggingface_hub.utils.disable_progress_bars()
    return HfApi(endpoint=loopback.url, token=loopback.token)
