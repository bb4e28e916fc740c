"""Saves the logits that transformers + optimum + gptqmodel compute from GPTQ folders: the tests' independent reader.

Run by the python of `make peers` (.venv-peers), never imported:

    .venv-peers/bin/python tests/peers/logits.py IDS.json MODEL_DIR OUT.npy [MODEL_DIR OUT.npy ...]

IDS.json is a list of equally long lists of token ids. Each OUT.npy is float32 [batch, sequence, vocabulary].
One start-up, most of the time, serves all pairs. A folder that does not load ends the run with its exception.
The kernel computes in fp16: against the same weights in fp32 expect a relative error near 1e-3, not 0.
"""

import json
import os
import sys
from pathlib import Path

# Read by gptqmodel and torch while they are imported, so they are set before that.
os.environ.update(
    GPTQMODEL_CPU_WORKERS="2",  # gptqmodel refuses to start its pools on two cores otherwise
    TORCH_COMPILE_DISABLE="1",
    HF_HUB_OFFLINE="1",
    CUDA_VISIBLE_DEVICES="",
)
sys.dont_write_bytecode = False  # compiling the peers' sources costs about 10 s at every start

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, GPTQConfig  # noqa: E402


def load(model_dir: Path) -> torch.nn.Module:
    """Loads a GPTQ folder the way a transformers user does, with gptqmodel's plain torch kernel in fp16.

    Raises SystemExit where transformers would only warn: it fills tensors that are missing with random numbers.
    """
    bits = json.loads((model_dir / "config.json").read_text())["quantization_config"]["bits"]
    model, info = AutoModelForCausalLM.from_pretrained(
        model_dir,
        device_map="cpu",
        dtype=torch.float16,  # the kernel refuses fp32
        quantization_config=GPTQConfig(bits=bits, backend="gptq_torch"),  # the automatic choice compiles for minutes
        trust_remote_code=False,
        output_loading_info=True,
    )
    if problems := {kind: sorted(map(str, names)) for kind, names in info.items() if names}:
        raise SystemExit(f"{model_dir}: transformers loads it with {problems}")
    return model.eval()


def main() -> None:
    if len(sys.argv) < 4 or len(sys.argv) % 2:
        raise SystemExit(__doc__)
    ids_file, *pairs = sys.argv[1:]
    ids = torch.tensor(json.loads(Path(ids_file).read_text()))  # [batch, sequence] int64
    for model_dir, out_file in zip(pairs[::2], pairs[1::2], strict=True):
        with torch.inference_mode():
            logits = load(Path(model_dir))(ids, use_cache=False).logits
        np.save(out_file, logits.float().numpy())


if __name__ == "__main__":
    main()
