"""Tiny models that do not repeat themselves, and what transformers alone writes with them."""

import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import VARIANTS, make_model


def wandering_model(folder, name, strength=12.0):
    """A model in which every token depends on all before it: without this, tied ones repeat the last.

    Args:
        folder: made if it is absent.
        name: a key of VARIANTS.
        strength: of the layers against the embedding; the larger, the sooner a small error shows.
    """
    architecture, config = VARIANTS[name]
    make_model(folder, architecture, **config)
    weights = load_file(folder / "model.safetensors")
    for key, value in weights.items():
        if value.dim() == 2:
            value *= strength if "embed_tokens" not in key else 1.0 if name == "xglm" else 0.03
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def written_by_transformers(model, prompts, most):
    """Greedy answers to each prompt alone, as many tokens as asked for whatever they are.

    Args:
        model: in float32, or the folder of one.
        prompts: token ids.
        most: tokens of each answer.
    """
    if not isinstance(model, torch.nn.Module):
        model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    answers = []
    for ids in prompts:
        given = torch.tensor([ids])
        out = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=most)
        answers.append(out[0, len(ids) :].tolist())
    return answers


def cut(answers, ends):
    """Answers as they are when some tokens end them."""
    stops = [next((n for n, token in enumerate(answer, 1) if token in ends), len(answer)) for answer in answers]
    return [answer[:stop] for answer, stop in zip(answers, stops, strict=True)]
