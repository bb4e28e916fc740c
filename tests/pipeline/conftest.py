"""What the tests of the pipeline share: tiny checkpoints made once, and no timing of the machine."""

import os

import pytest
import tiny

from quantkit.vocab.corpus import corpus


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    pass


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """No power is cut in these tests, and a busy disk would make them last for minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        patch.setattr(os, "fdatasync", lambda _descriptor: None, raising=False)
        yield


@pytest.fixture(autouse=True, scope="module")
def _quick_proof():
    """Tokenizers are compared on eight texts; on all of them in test_tokenizers.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.vocab.proof.corpus", lambda special: corpus(special)[:8])
        yield


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch):
    """Planning measures the speed of matrix products; here any figure will do."""
    monkeypatch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Tiny checkpoints by variant, dtype and layout, each made when first asked for. Not to be changed."""
    made = {}

    def source(variant="llama", dtype=None, layout="safetensors", **config):
        key = (variant, dtype, layout, repr(sorted(config.items())))
        if key not in made:
            architecture, settings = tiny.VARIANTS[variant]
            folder = tmp_path_factory.mktemp("source") / variant
            options = {} if dtype is None else {"dtype": dtype}
            made[key] = tiny.make_model(folder, architecture, layout=layout, **options, **(dict(settings) | config))
        return made[key]

    return source
