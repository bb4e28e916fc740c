"""The first look at a `.bin` file: what its pickle says of tensors, read from its opcodes without torch.

A pickle is a program for a small stack machine. Here nothing of it is loaded or run: names of classes stay names, and
calls of the few functions that torch.save writes are noted as what they would make. It is only a look, for a quick
refusal: what it does not understand it leaves to torch's own restricted unpickler, which reads the file in any case.
The opcodes are those of `torch/_weights_only_unpickler.py`.
"""

import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError
from quantkit.tensors import ITEM_BYTES, TensorInfo
from quantkit.weights.archive import HINT, read_records

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
# Names that torch's unpickler may allow: tensors, storages, dtypes and what puts them together.
ALLOWED = re.compile(
    r"torch\.((_utils|_tensor)\._rebuild\w+|nn\.parameter\.\w+|storage\.\w+Storage|serialization\._get_layout"
    r"|([a-z]+\.)*[A-Z]\w*(Tensor|Storage)|Tensor|Size|device|bool|[a-z]+[0-9]\w*|per_(tensor|channel)_\w+)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(bytearray|set|complex)"
)
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
_MARK = object()


class NotUnderstood(Exception):
    """A pickle that torch has to judge."""


@dataclass(frozen=True)
class _Global:
    """The name of a class or function."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # values
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def look_at_pickle(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a `.bin` file, by name, as `read_pickled_header` would give them.

    Raises:
        NotUnderstood: torch has to judge.
        BadInputError: another form of file, other objects than tensors, or tensors that do not lie in the file as a
            plain range.
        NotFoundError: there is no such file.
        DiskError: the file cannot be read.
    """
    text, places = read_records(path)
    try:
        state = _Machine(path.name).run(text)
    except (LookupError, TypeError, ValueError) as error:  # a damaged pickle
        raise NotUnderstood from error
    if not isinstance(state, dict | list | str | int | float | None) or isinstance(state, bool):
        raise NotUnderstood
    if not isinstance(state, dict) or not state:
        raise BadInputError(f"{path.name}: found no dictionary of tensors", HINT)
    return {str(name): _info(name, value, places, path.name) for name, value in state.items()}


class _Machine:
    """The stack machine of a pickle, for notes of what would be made."""

    def __init__(self, file_name: str) -> None:
        self._file_name = file_name
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, text: bytes) -> Any:  # noqa: ANN401
        """What the pickle would leave."""
        for opcode, argument, _ in pickletools.genops(text):
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name in _VALUES:
                self._stack.append(argument)
            elif act := _ACTS.get(opcode.name):
                act(self, argument)
            else:
                found = f"a pickle that does not load (Unsupported operand {ord(opcode.code)})"
                raise BadInputError(f"{self._file_name}: found {found}, expected tensors alone", HINT)
        raise NotUnderstood

    def push(self, value: Any) -> None:  # noqa: ANN401
        """A value that is there."""
        self._stack.append(value)

    def pop(self) -> Any:  # noqa: ANN401
        """The last value."""
        return self._stack.pop()

    def pop_marked(self) -> list[Any]:
        """The values behind the last mark."""
        start = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
        values = self._stack[start + 1 :]
        del self._stack[start:]
        return values

    def put(self, number: int) -> None:
        """Remember the last value."""
        self._memo[number] = self._stack[-1]

    def get(self, number: int) -> None:
        """Bring back a value."""
        self._stack.append(self._memo[number])

    def name(self, argument: str) -> None:
        """A class or function by its name; code is refused."""
        name = ".".join(argument.split(" "))
        if not ALLOWED.fullmatch(name):
            raise BadInputError(f"{self._file_name}: found {name} in its pickle, expected tensors alone", HINT)
        self._stack.append(_Global(name))

    def call(self, _argument: object) -> None:
        """A function of its arguments: what torch.save writes is understood."""
        arguments, function = self._stack.pop(), self._stack.pop()
        called = function.name if isinstance(function, _Global) else ""
        if called == "collections.OrderedDict" and arguments == ():
            self._stack.append(OrderedDict())
        elif called == "torch._utils._rebuild_tensor_v2":
            self._stack.append(_tensor(*arguments[:4]))
        elif called == "torch._utils._rebuild_parameter" and isinstance(arguments[0], _Tensor):
            self._stack.append(arguments[0])
        else:
            raise NotUnderstood

    def storage(self, _argument: object) -> None:
        """A storage by the words that name it."""
        word, kind, key, _location, _elements = self._stack.pop()
        name = kind.name.removeprefix("torch.") if isinstance(kind, _Global) else ""
        if word != "storage" or name not in STORAGES or not isinstance(key, str):
            raise NotUnderstood
        self._stack.append(_Storage(STORAGES[name], key))

    def set_items(self, pairs: list[Any]) -> None:
        """Keys and values, in turn, of the dictionary below them."""
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise NotUnderstood
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):  # hashes of tuples of tuples take for ever
                raise NotUnderstood
            target[key] = value

    def append(self, values: list[Any]) -> None:
        """Values to the list below them."""
        if not isinstance(self._stack[-1], list):
            raise NotUnderstood
        self._stack[-1].extend(values)


def _nothing(_machine: _Machine, _argument: object) -> None:
    """The protocol's number; the attributes of a dictionary, such as the versions of modules."""


def _pushing(make: Callable[[], object]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(tuple([machine.pop() for _ in range(count)][::-1]))


_ACTS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _nothing,
    "GLOBAL": _Machine.name,
    "REDUCE": _Machine.call,
    "BINPERSID": _Machine.storage,
    "BUILD": lambda machine, _: machine.pop() and None,
    "MARK": _pushing(lambda: _MARK),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_marked())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_TUPLE": _pushing(tuple),
    "EMPTY_LIST": _pushing(list),
    "EMPTY_DICT": _pushing(dict),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_marked()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_marked()),
    "NONE": _pushing(lambda: None),
    "NEWFALSE": _pushing(lambda: False),
    "NEWTRUE": _pushing(lambda: True),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "NEWOBJ": lambda *_: _raise(),
    "EMPTY_SET": lambda *_: _raise(),
}


def _raise() -> None:
    raise NotUnderstood


def _tensor(storage: object, offset: object, shape: object, strides: object) -> _Tensor:
    sizes = [shape, strides]
    whole = all(isinstance(one, tuple) and all(type(size) is int and size >= 0 for size in one) for one in sizes)
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0 or not whole:
        raise NotUnderstood
    return _Tensor(storage, offset, tuple(shape), tuple(strides))  # type: ignore[arg-type]


def _info(name: object, value: object, places: Mapping[str, range], file_name: str) -> TensorInfo:
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise BadInputError(f"{file_name}: found the key {name!r:.100}, expected tensor names", HINT)
    if not isinstance(value, _Tensor):
        if isinstance(value, _Global | _Storage):
            raise NotUnderstood
        kind = type(value).__name__
        raise BadInputError(f"{file_name}: found {kind} under {name!r:.100}, expected a tensor", HINT)
    if value.storage.key not in places:
        found = f"no storage {value.storage.key[:100]!r} in the zip file"
        raise BadInputError(f"{file_name}: found {found}, expected tensors alone", HINT)
    if not _is_contiguous(value):
        found = f"strides {value.strides} for shape {list(value.shape)}"
        raise BadInputError(f"{file_name}: found tensor {name!r:.100} with {found}, expected contiguous", HINT)
    place, dtype = places[value.storage.key], value.storage.dtype
    offset = place.start + value.offset * ITEM_BYTES[dtype]
    info = TensorInfo(name, dtype, value.shape, file_name, offset)
    if info.elements and offset + info.nbytes > place.stop:
        raise BadInputError(f"{file_name}: found tensor {name!r:.100} reaching beyond its storage", HINT)
    return info


def _is_contiguous(tensor: _Tensor) -> bool:
    """Whether the values lie one after the other; sizes of one, and tensors without values, have no steps."""
    if len(tensor.shape) != len(tensor.strides):
        raise NotUnderstood
    if 0 in tensor.shape:
        return True
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
