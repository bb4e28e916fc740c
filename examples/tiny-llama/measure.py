"""Measure what rounding to nearest costs the tiny Llama, and sample text from the model itself.

    python measure.py --text pride.txt alice.txt --text sherlock.txt   # one table row per --text
    python measure.py --sample sample.txt                              # write the sample, then measure it

On text drawn from the model, the expected rise of the log-perplexity is the KL divergence itself.
"""

import argparse
import copy
from pathlib import Path

import torch
from gutenberg import book_text
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaForCausalLM

WINDOW = 256
GROUP_SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).parent)
    parser.add_argument("--text", nargs="+", type=Path, action="append", default=[])
    parser.add_argument("--sample", type=Path, help="sample text into this file and measure it too")
    parser.add_argument("--documents", type=int, default=28, help="documents of 256 tokens to sample")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    # The stored weights are bf16; fp32 arithmetic keeps the small differences free of its own rounding.
    model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    texts = {" + ".join(path.stem for path in paths): "".join(map(book_text, paths)) for paths in args.text}
    if args.sample:
        texts[args.sample.name] = sample(model, tokenizer, args.documents)
        args.sample.write_text(texts[args.sample.name], encoding="utf-8", newline="\n")
    models = {"bf16": model} | {f"{bits} bits": round_linears(model, bits) for bits in (8, 4, 3)}
    print("| text | windows | format | perplexity | rise of log-perplexity ± s.e. | KL divergence |")
    print("|---|---|---|---|---|---|")
    for name, text in texts.items():
        windows = cut(tokenizer.encode(text).ids)
        table = compare(list(models.values()), windows)  # [windows, models, 3]
        error = table[:, :, 1].std(0) / len(windows) ** 0.5
        for format_name, (loss, rise, divergence), wide in zip(models, table.mean(0), error, strict=True):
            figures = f"{loss.exp():.4f} | {rise:+.4f} ± {wide:.4f} | {divergence:.4f}"
            print(f"| {name} | {len(windows)} | {format_name} | {figures} |", flush=True)


def sample(model: LlamaForCausalLM, tokenizer: Tokenizer, count: int) -> str:
    """Documents of one window each, drawn at temperature 1, each after its BOS.

    A document whose text is not cut into the same tokens again is passed over: its loss would be
    that of other tokens than the model drew.
    """
    torch.manual_seed(0)
    bos = tokenizer.id_to_token(model.config.bos_token_id)
    start = torch.full((count, 1), model.config.bos_token_id)
    kept, drawn = [], 0
    while len(kept) < count:
        rows = model.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=WINDOW - 1, max_new_tokens=WINDOW - 1,
        ).tolist()  # fmt: skip
        drawn += len(rows)
        documents = [bos + tokenizer.decode(row[1:]) for row in rows]
        kept += [text for text, row in zip(documents, rows, strict=True) if tokenizer.encode(text).ids == row]
    print(f"{len(kept)} of {drawn} documents are cut into their own tokens again; {count} are kept\n")
    return "".join(kept[:count])


def round_linears(model: LlamaForCausalLM, bits: int) -> LlamaForCausalLM:
    """A copy whose decoder linears are rounded to nearest, symmetric, with fp16 scales."""
    rounded = copy.deepcopy(model)
    for module in rounded.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = round_weight(module.weight.data, bits)
    return rounded


def round_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Scale 2 max|w| / (2^bits - 1) and zero point 2^(bits-1), as GPTQ's symmetric grid has them."""
    groups = weight.view(len(weight), -1, GROUP_SIZE)  # [out_features, groups, GROUP_SIZE] fp32
    scale = (2 * groups.abs().amax(-1, keepdim=True) / (2**bits - 1)).half().float()
    codes = torch.round(groups / scale).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (codes * scale).view_as(weight)


def cut(tokens: list[int]) -> torch.Tensor:
    """Non-overlapping windows [windows, WINDOW]; the tokens left over at the end are dropped."""
    return torch.tensor(tokens[: len(tokens) // WINDOW * WINDOW]).view(-1, WINDOW)


@torch.inference_mode()
def compare(models: list[LlamaForCausalLM], windows: torch.Tensor) -> torch.Tensor:
    """Per window and model: mean loss, its rise over models[0], and KL(models[0], model), in nats.

    Every window predicts its tokens but the first. Returns [windows, models, 3].
    """
    rows = []
    for batch in windows.split(16):
        target = batch[:, 1:, None]
        log_base = models[0](batch).logits[:, :-1].log_softmax(-1)  # [16, WINDOW - 1, vocabulary] fp32
        base_loss = -log_base.gather(-1, target).mean((1, 2))
        for model in models:
            log_model = model(batch).logits[:, :-1].log_softmax(-1) if model is not models[0] else log_base
            loss = -log_model.gather(-1, target).mean((1, 2))
            divergence = (log_base.exp() * (log_base - log_model)).sum(-1).mean(-1)
            rows.append(torch.stack([loss, loss - base_loss, divergence], dim=1))
    per_model = [torch.cat(rows[index :: len(models)]) for index in range(len(models))]
    return torch.stack(per_model, dim=1)


if __name__ == "__main__":
    main()
