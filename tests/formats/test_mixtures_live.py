"""The recorded answers are still llama.cpp's, where llama-cpp-python is installed."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers-llama-quantize" / "bin" / "python"
RECORD = Path(__file__).parent / "mixtures.json"


@pytest.mark.peers
@pytest.mark.skipif(not PYTHON.exists(), reason="no llama-cpp-python: scripts/make_llamacpp.sh builds it in minutes")
def test_llama_cpp_still_says_what_was_recorded(tmp_path):
    out = tmp_path / "mixtures.json"
    subprocess.run([PYTHON, ROOT / "scripts" / "llamacpp_mixtures.py", out], check=True, timeout=600)
    found, recorded = (json.loads(path.read_text("utf-8")) for path in (out, RECORD))
    for record in (found, recorded):
        del record["llama_cpp_python"]
    assert found == recorded
