"""What a conversion to GGUF is predicted to cost: memory, disk and time."""

import pytest

from quantkit.formats.ggml.encode import can_encode
from quantkit.formats.ggml.native import NATIVE_TYPES
from quantkit.formats.gguf_transforms import Assembly, Part
from quantkit.plan.gguf_budget import ENCODERS, gguf_budget
from quantkit.plan.gguf_rows import GgufRow
from quantkit.weights.gguf_types import GGML_TYPES

ROW = GgufRow("blk.0.ffn_up.weight", (1024, 1024), Assembly(1024, (Part("up", 1024),)))


def seconds(*types, threads=1, rows=(ROW,), **more):
    chosen = [[name] * len(rows) for name in types]
    given = {"written": 0, "read": 0, "is_whole": False, "download": 0, "base_bytes": 0} | more
    return gguf_budget(rows, chosen, threads=threads, **given).seconds


def test_every_encoder_has_a_rate():
    assert set(ENCODERS) == {name for name in GGML_TYPES if can_encode(name)} - set(NATIVE_TYPES)


def test_work_is_shared_out_and_adds_up():
    once = seconds("Q4_K")
    assert seconds("Q4_K", threads=2) == pytest.approx(once / 2)
    assert seconds("Q4_K", rows=(ROW, ROW, ROW)) == pytest.approx(3 * once)
    assert once < seconds("Q4_K", "Q6_K") < once + seconds("Q6_K")  # bfloat16 is widened once


def test_a_disk_that_is_slower_than_the_encoder_decides():
    assert seconds("BF16", threads=16, read=10**10) == pytest.approx(10)
    assert seconds("BF16", threads=16, read=10**10, written=5 * 10**9) == pytest.approx(20)


def test_what_takes_long_is_known_to():
    assert seconds("BF16") < seconds("Q8_0") < seconds("Q4_0") < seconds("Q4_K") < seconds("IQ2_XS")
    assert seconds("Q4_K") < seconds("Q4_K", important=True)


def test_memory_is_that_of_slabs_unless_tensors_come_whole():
    def host(**more):
        given = {"written": 7, "read": 0, "is_whole": False, "download": 5, "threads": 1, "base_bytes": 0} | more
        return gguf_budget([ROW], [["Q4_K"]], **given)

    assert host(base_bytes=11).host_bytes == host().host_bytes + 11
    assert host(threads=3).host_bytes == host().host_bytes + 2 * 16 * 2**20
    assert host(is_whole=True).host_bytes == host().host_bytes + 14 * 2**20
    assert (host().disk_bytes, host().download_bytes) == (12, 5)
    assert (host(held=3).disk_bytes, host(held=3).download_bytes) == (10, 5)  # streamed
