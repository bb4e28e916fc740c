"""What the tests of the Hub's own side share."""

import time

import pytest


@pytest.fixture
def quick(monkeypatch):
    """The client's pauses between its own tries last no time."""
    pause = time.sleep
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pause(0.001))
