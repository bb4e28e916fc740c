"""A GPTQ checkpoint, ours or another tool's, read as if it were the 16-bit checkpoint it was made from."""

from collections.abc import Mapping
from typing import Any

import torch

from quantkit.errors import BadInputError
from quantkit.formats.gptq import decode
from quantkit.tensors import TensorInfo, TensorSource

_SUFFIXES = (".qweight", ".qzeros", ".scales", ".g_idx")


class DequantizedSource:
    """Names an ordinary `P.weight` for every `P.qweight` and dequantizes it when it is read.

    Everything else (biases, norms, embeddings, skipped linears) passes through.

    Raises:
        BadInputError: the configuration is not one of GPTQ in a known packing, or the tensors of a linear are
            incomplete or do not fit together.
    """

    def __init__(self, source: TensorSource, config: Mapping[str, Any]) -> None:
        """Takes the checkpoint's tensors and its `quantization_config` (or `quantize_config.json`)."""
        self._source = source
        self._format = _stored_format(config)
        self._config = config
        self._infos: dict[str, TensorInfo] = {}
        quantized = {name.removesuffix(".qweight") for name in source.infos if name.endswith(".qweight")}
        for name, info in source.infos.items():
            prefix, dot, suffix = name.rpartition(".")
            if prefix not in quantized or dot + suffix not in _SUFFIXES:
                self._infos[name] = info
            elif suffix == "qweight":
                self._infos[f"{prefix}.weight"] = self._weight_info(prefix)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name; dequantized ones are F16 [out_features, in_features]."""
        return self._infos

    def stored(self, name: str) -> tuple[str, ...]:
        """The tensors of the checkpoint that `read` takes, in the order in which it reads them."""
        prefix = name.removesuffix(".weight")
        if f"{prefix}.qweight" not in self._source.infos:
            return (name,)
        return tuple(prefix + suffix for suffix in _SUFFIXES if prefix + suffix in self._source.infos)

    def read(self, name: str) -> torch.Tensor:
        """The tensor, dequantized to float16 where it is stored quantized.

        Raises:
            BadInputError: the stored tensors of the linear do not fit together.
        """
        prefix = name.removesuffix(".weight")
        if f"{prefix}.qweight" not in self._source.infos:
            return self._source.read(name)
        qweight, qzeros, scales = (self._source.read(prefix + suffix) for suffix in _SUFFIXES[:3])
        bits = self._bits(prefix)
        g_idx = self._group_index(prefix, self._infos[name].shape[1], scales.shape[0])
        try:
            return decode(qweight, qzeros, scales, g_idx, bits, self._format).dequantize(torch.float16)
        except BadInputError as error:
            raise BadInputError(f"{prefix}: {error}", error.hint) from error

    def _weight_info(self, prefix: str) -> TensorInfo:
        if f"{prefix}.weight" in self._source.infos:
            raise BadInputError(f"{prefix} is stored twice, as weight and as qweight")
        for suffix in _SUFFIXES[:3]:
            info = self._source.infos.get(prefix + suffix)
            if info is None:
                raise BadInputError(f"{prefix}{suffix} is missing beside {prefix}.qweight")
            if len(info.shape) != 2 or 0 in info.shape or (suffix != ".scales" and info.dtype != "I32"):
                kind = "a matrix" if suffix == ".scales" else "an I32 matrix"
                found = f"{info.dtype} {list(info.shape)}"
                raise BadInputError(f"{prefix}{suffix} is {found}, expected {kind}")
        packed = self._source.infos[f"{prefix}.qweight"]
        shape = (packed.shape[1], packed.shape[0] * 32 // self._bits(prefix))
        return TensorInfo(f"{prefix}.weight", "F16", shape, packed.file, packed.offset)

    def _bits(self, prefix: str) -> int:
        """Bits of one linear, from its shapes: files may mix them, and every tool notes that differently."""
        out_features = self._source.infos[f"{prefix}.qweight"].shape[1]
        bits, rest = divmod(self._source.infos[f"{prefix}.qzeros"].shape[1] * 32, out_features)
        if rest or bits not in (2, 3, 4, 8):
            raise BadInputError(f"{prefix}.qzeros does not fit 2, 3, 4 or 8 bits for {out_features} outputs")
        return bits

    def _group_index(self, prefix: str, columns: int, groups: int) -> torch.Tensor:
        """g_idx, or the natural one where the file has none or only zeros (a buffer never filled)."""
        if f"{prefix}.g_idx" in self._source.infos:
            g_idx = self._source.read(f"{prefix}.g_idx")
            if groups == 1 or bool(g_idx.any()):
                return g_idx
        size = self._config.get("group_size", -1)
        if not isinstance(size, int) or size <= 0 or -(-columns // size) != groups:
            size = columns // groups
        if self._config.get("desc_act") or -(-columns // size) != groups:
            raise BadInputError(f"{prefix}.g_idx is missing, and the order of its {groups} groups is unknown")
        return torch.arange(columns, dtype=torch.int32) // size


def _stored_format(config: Mapping[str, Any]) -> str:
    """What qzeros hold: checkpoint_format overrides format, and neither means v1."""
    method = config.get("quant_method", "gptq")
    stored_as = config.get("checkpoint_format") or config.get("format") or "gptq"
    if method != "gptq" or stored_as not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        raise BadInputError(
            f'the checkpoint is quantized by {method!r} in format {stored_as!r}, expected GPTQ in "gptq" or "gptq_v2"',
            "start from the 16-bit checkpoint",
        )
    if config.get("pack_dtype", "int32") != "int32":
        raise BadInputError(f'codes are packed into {config["pack_dtype"]!r}, expected "int32"')
    return str(stored_as)
