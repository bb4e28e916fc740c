"""Whether two GGUF files hold the same tensors, by llama.cpp's own reader: for gguf_vs_llamacpp.py, as JSON.

    python benchmarks/gguf_equal.py GGUF_PY_FOLDER OURS.gguf THEIRS.gguf

A process of its own: what the benchmark holds in memory itself would count as memory of the tools that it starts.
"""

import json
import sys

sys.path.insert(0, sys.argv[1])

import numpy
from gguf import GGUFReader


def main() -> None:
    own, theirs = ({tensor.name: tensor for tensor in GGUFReader(path).tensors} for path in sys.argv[2:])
    different = {}
    for name in dict.fromkeys([*own, *theirs]):
        if name not in own or name not in theirs:
            different[name] = "missing from ours" if name not in own else "missing from theirs"
            continue
        ours, other = own[name], theirs[name]
        same = {
            "type": ours.tensor_type == other.tensor_type,
            "shape": list(ours.shape) == list(other.shape),
            "bytes": numpy.array_equal(ours.data, other.data),
        }
        if not all(same.values()):
            different[name] = next(what for what, equal in same.items() if not equal)
    print(json.dumps({"tensors": len(own.keys() | theirs.keys()), "different": different}))


if __name__ == "__main__":
    main()
