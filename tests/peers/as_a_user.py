"""Says what transformers + optimum + gptqmodel make of artifacts, tokenizers and models, where nobody trusts code.

Run by the python of `make peers` (.venv-peers), never imported:

    .venv-peers/bin/python tests/peers/as_a_user.py REQUEST.json OUT_DIR

REQUEST.json: {"ids": equally long lists of token ids, "question": a text, "artifacts": {NAME: {"folder": its folder,
"texts": texts}}}. Of each artifact OUT_DIR gets NAME.npy, its logits as in logits.py, and NAME.json: `class` of the
tokenizer, `inputs` that it makes, `ids` of the texts, `special` ids of bos, eos and pad, `chat` and `chat_ids` of the
question where there is a chat template.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from logits import load  # first: it sets what the libraries read while they are imported
from transformers import AutoTokenizer


def tokenize(folder: str, texts: list[str], question: str) -> dict[str, object]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(texts)
    found = {
        "class": type(tokenizer).__name__,
        "inputs": sorted(encoded),
        "ids": encoded["input_ids"],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
    }
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": question}]
        found["chat"] = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        found["chat_ids"] = tokenizer(found["chat"], add_special_tokens=False)["input_ids"]
    return found


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    request, out = json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2])
    ids = torch.tensor(request["ids"])  # [batch, sequence] int64
    for name, artifact in request["artifacts"].items():
        found = tokenize(artifact["folder"], artifact["texts"], request["question"])
        (out / f"{name}.json").write_text(json.dumps(found), "utf-8")
        with torch.inference_mode():
            logits = load(Path(artifact["folder"]))(ids, use_cache=False).logits
        np.save(out / f"{name}.npy", logits.float().numpy())


if __name__ == "__main__":
    main()
