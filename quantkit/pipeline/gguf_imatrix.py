"""The importance matrix of a conversion to GGUF: collected from calibration text, or kept from an earlier run."""

from pathlib import Path
from typing import Any

import torch

from quantkit.calibration import build_tokens, public_name
from quantkit.devices import Device
from quantkit.errors import OutOfMemoryError
from quantkit.pipeline.gguf_model import GgufModel
from quantkit.pipeline.imatrix import check_forward, collect, reads
from quantkit.pipeline.imatrix_file import assembled, kept_or_made, origin_of, own_imatrix
from quantkit.pipeline.job import sample_length
from quantkit.pipeline.machine import available_bytes, machine_of
from quantkit.plan.imatrix_budget import ImatrixBudget, imatrix_budget
from quantkit.progress import Progress
from quantkit.recipe import Calibration, Recipe
from quantkit.skeleton import Skeleton
from quantkit.units import format_gib, format_seconds
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.imatrix import Imatrix
from quantkit.weights.streamed import StreamedSource


def imatrix_for(
    path: Path, model: GgufModel, calibration: Calibration, device: Device, source: object, progress: Progress
) -> tuple[Imatrix, dict[str, Any]]:
    """The imatrix of a model in a file, which is made unless it is there already.

    Args:
        path: of the GGUF file.
        model: what is converted; its source can be read.
        calibration: the text.
        device: where to compute, and in which dtype.
        source: a commit; or, as JSON has it, whatever else tells the weights from others.
        progress: told of each layer.

    Returns:
        The imatrix, and what the record of the run says about it.

    Raises:
        UsageError: a mixture of experts.
        BadInputError: too little text, values that are not finite, a file of another tool.
        OutOfMemoryError: the forward pass needs more memory than there is.
        DiskError: the file cannot be written.
    """
    check_forward(model.family)
    own_imatrix(path)
    skeleton = Skeleton(model.family, model.config, device.dtype, device.device)
    length = sample_length(Recipe(calibration=calibration), model.config)
    tokenizer = load_tokenizer(model.checkpoint.folder, model.config, model.checkpoint.repo_id)
    tokens = build_tokens(calibration, tokenizer, skeleton.vocabulary(), length)
    origin = origin_of(tokens, source, device.dtype)

    def made() -> Imatrix:
        samples, length = tokens.ids.shape
        cost = _cost(model, device, samples, length)
        names = ", ".join(name for name, _ in tokens.sets)
        progress.say(f"imatrix: {samples} x {length} tokens from {names}, about {format_seconds(cost.seconds)}")
        _check_memory(cost, device)
        if isinstance(model.checkpoint.source, StreamedSource):
            progress.say("the repository crosses the network for the imatrix, and then for the files")
            model.checkpoint.source.expect(stored for name in reads(skeleton) for stored in model.stored(name))
        entries = collect(skeleton, model.source, model.rows, tokens.ids, progress)
        return assembled(entries, tokens, map(public_name, calibration.text), origin)

    return kept_or_made(path, origin, made, progress)


def imatrix_cost(model: GgufModel, calibration: Calibration, device: Device) -> ImatrixBudget:
    """What that collection will cost.

    Args:
        model: what is converted; headers will do.
        calibration: the text.
        device: where to compute, and in which dtype.

    Raises:
        UsageError: a mixture of experts.
    """
    check_forward(model.family)
    return _cost(model, device, calibration.samples, sample_length(Recipe(calibration=calibration), model.config))


def _cost(model: GgufModel, device: Device, samples: int, length: int) -> ImatrixBudget:
    sizes = Skeleton(model.family, model.config).sizes()  # first: what it loads stays in memory
    machine = machine_of(device)
    return imatrix_budget(model.family, model.source.infos, sizes, machine, samples, length)


def _check_memory(cost: ImatrixBudget, device: Device) -> None:
    available = available_bytes()
    if cost.host_bytes > available:
        raise OutOfMemoryError(
            f"the imatrix needs {format_gib(cost.host_bytes)} of memory, {format_gib(available)} is available",
            f"{format_gib(cost.activation_bytes)} of it holds activations: lower --samples or --sequence-length",
        )
    if device.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device.device)
        if cost.device_bytes > free:
            raise OutOfMemoryError(
                f"the imatrix needs {format_gib(cost.device_bytes)} of GPU memory, {format_gib(free)} is free",
                "use --device cpu",
            )
