"""Reading pickled forests without running anything that the pickle names.

A pickle is a program. This reader lets it build plain values, numbers in arrays, and lifeless records of the few
classes that a forest consists of; any other name, and any instruction that such a file has no use for, is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_PICKLE_BYTES: Final = 4 << 30

# Opcodes of protocols 0 to 5 that build values, call the names below, or manage the stack.
_OPCODES: Final = frozenset(
    {
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "POP",
        "POP_MARK",
        "DUP",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "EMPTY_LIST",
        "LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_DICT",
        "DICT",
        "SETITEM",
        "SETITEMS",
        "GET",
        "BINGET",
        "LONG_BINGET",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "MEMOIZE",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "BUILD",
        "NEWOBJ",
    }
)
_RECORDS: Final = frozenset(
    {
        "BalancedRandomForestClassifier",
        "DecisionTreeClassifier",
        "ExtraTreeClassifier",
        "ExtraTreesClassifier",
        "Pipeline",
        "RandomForestClassifier",
        "RandomUnderSampler",
        "Tree",
    }
)
_RECORD_PACKAGES: Final = ("sklearn.", "imblearn.")
_NUMPY_MODULES: Final = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")


class UnsafePickleError(Exception):
    """A pickle that names what a forest does not consist of, or is damaged; the text says what."""


@dataclass
class Record:
    """A lifeless object: the class that the pickle named, what it was made with, and its attributes."""

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default


def read_pickle(source: str | Path | bytes, max_bytes: int = MAX_PICKLE_BYTES) -> Any:
    """Read a pickle of a forest, a list of names, or a pandas Index of names.

    Parameters
    ----------
    source : path or bytes
    max_bytes : int
        Larger files are refused.

    Returns
    -------
    object
        Plain values and numpy arrays; objects as :class:`Record`; a pandas Index as a list.

    Raises
    ------
    UnsafePickleError
        If the pickle asks for anything else, or cannot be read.
    """
    if isinstance(source, bytes):
        content = source
    else:
        if Path(source).stat().st_size > max_bytes:
            raise UnsafePickleError(f"{source} has more than {max_bytes:,} bytes")
        content = Path(source).read_bytes()
    _check_opcodes(content)
    try:
        return _plain(_Reader(io.BytesIO(content)).load())
    except UnsafePickleError:
        raise
    except RecursionError:
        raise UnsafePickleError("it is nested too deeply") from None
    except Exception as error:
        raise UnsafePickleError(f"it is damaged: {error}") from error


def _check_opcodes(content: bytes) -> None:
    """Refuse instructions that a forest needs not; those that name a huge memo place would use up the memory."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in _OPCODES:
                raise UnsafePickleError(f"it holds the instruction {opcode.name}, for which a forest has no use")
            if opcode.name in ("PUT", "LONG_BINPUT") and not 0 <= int(str(argument)) <= len(content):
                raise UnsafePickleError("its memory places are out of bounds")
    except ValueError as error:
        raise UnsafePickleError(f"it is damaged or no pickle: {error}") from error


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _RECORDS and module.startswith(_RECORD_PACKAGES):
            return _RECORD_TYPES[name]
        found = _FUNCTIONS.get((module, name))
        if found is None:
            raise UnsafePickleError(f"it names {module}.{name}, which no forest consists of")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("it refers to objects outside of the file")


class _Lifeless:
    """Stands for an object of the pickle while it is read; keeps what it was made with and its state."""

    kind = ""

    def __new__(cls, *arguments: Any, **keywords: Any) -> _Lifeless:
        made = super().__new__(cls)
        made.arguments = arguments
        made.state = {}
        return made

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


_RECORD_TYPES: Final = {name: type(name, (_Lifeless,), {"kind": name}) for name in _RECORDS}


class _Type(_Lifeless):
    """numpy.dtype: made from a code such as ``f8``, then told its byte order or fields."""

    def dtype(self) -> np.dtype:
        code = self.arguments[0] if self.arguments else ""
        if not isinstance(code, str):
            raise UnsafePickleError("an array type is not named by a code")
        told: tuple[Any, ...] = self.state[1:6] if self.state else ("=", None, None, None, 0)
        order, _, names, fields, size = told
        if names:
            formats = [_dtype_of(fields[name][0]) for name in names]
            offsets = [int(fields[name][1]) for name in names]
            return np.dtype({"names": list(names), "formats": formats, "offsets": offsets, "itemsize": int(size or 0)})
        if code[:1] not in ("b", "i", "u", "f", "O", "U", "S"):
            raise UnsafePickleError(f"an array has the type {code!r}")
        if order not in ("<", ">", "=", "|"):
            raise UnsafePickleError(f"an array has the byte order {order!r}")
        return np.dtype(code) if order == "|" else np.dtype(code).newbyteorder(order)


def _dtype_of(value: Any) -> np.dtype:
    if not isinstance(value, _Type):
        raise UnsafePickleError("an array has no type")
    return value.dtype()


class _Array(_Lifeless):
    """numpy.ndarray as protocols up to 4 write it: made empty, then told shape, type and content."""

    def array(self) -> NDArray:
        _, shape, kind, fortran, content = self.state
        return _filled(content, _dtype_of(kind), shape, "F" if fortran else "C")


def _filled(content: Any, dtype: np.dtype, shape: Any, order: str) -> NDArray:
    shape = tuple(int(length) for length in shape)
    if dtype.hasobject:
        if not isinstance(content, list) or not all(isinstance(item, str | int | float | bool) for item in content):
            raise UnsafePickleError("an array of objects holds more than names and numbers")
        filled = np.empty(len(content), object)
        filled[:] = content
        return filled.reshape(shape, order="C")
    if isinstance(content, str):
        content = content.encode("latin1")
    return np.frombuffer(bytes(content), dtype).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct_array(*arguments: Any) -> _Array:
    return _Array(*arguments)


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> NDArray:
    return _filled(content, _dtype_of(kind), shape, order)


def _scalar(kind: Any, content: Any = b"") -> Any:
    dtype = _dtype_of(kind)
    if dtype.hasobject:
        raise UnsafePickleError("a number is an object")
    return _filled(content, dtype, (1,), "C")[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise UnsafePickleError("it encodes text in an unusual way")
    return text.encode("latin1")


def _reconstruct_object(kind: Any, base: Any = None, state: Any = None) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, _Lifeless)):
        raise UnsafePickleError("it makes an object of an unexpected class")
    return kind()


def _index(kind: Any, content: Any) -> Any:
    return content["data"] if isinstance(content, dict) and "data" in content else content


def _bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    return content if isinstance(content, bytes) else _encode(content, encoding)


class _Marker(_Lifeless):
    """A class that is only named, never made."""


@dataclass(frozen=True)
class _Function:
    """A function that a pickle may call, but not change."""

    called: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.called(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("it changes a function")


_FUNCTIONS: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("_codecs", "encode"): _Function(_encode),
    ("builtins", "object"): _Marker,
    ("__builtin__", "object"): _Marker,
    ("builtins", "bytearray"): _Function(_bytes),
    ("collections", "OrderedDict"): OrderedDict,
    ("copyreg", "_reconstructor"): _Function(_reconstruct_object),
    ("copy_reg", "_reconstructor"): _Function(_reconstruct_object),
    ("numpy.core.numeric", "_frombuffer"): _Function(_from_buffer),
    ("numpy._core.numeric", "_frombuffer"): _Function(_from_buffer),
    ("pandas.core.indexes.base", "Index"): _Marker,
    ("pandas.core.indexes.base", "_new_Index"): _Function(_index),
    ("pandas.indexes.base", "Index"): _Marker,
    ("pandas.indexes.base", "_new_Index"): _Function(_index),
    **{(module, "_reconstruct"): _Function(_reconstruct_array) for module in _NUMPY_MODULES},
    **{(module, "scalar"): _Function(_scalar) for module in _NUMPY_MODULES},
    **{(module, "ndarray"): _Marker for module in _NUMPY_MODULES},
    **{(module, "dtype"): _Type for module in _NUMPY_MODULES},
}


def _plain(value: Any, known: dict[int, Any] | None = None) -> Any:
    """Replace the stand-ins of the reader by records and arrays."""
    known = {} if known is None else known
    if id(value) in known:
        return known[id(value)]
    match value:
        case _Array():
            plain: Any = value.array()
        case _Type():
            plain = value.dtype()
        case _Lifeless():
            plain = known[id(value)] = Record(value.kind)
            plain.arguments = tuple(_plain(item, known) for item in value.arguments)
            plain.state = _plain(value.state, known)
        case dict():
            plain = known[id(value)] = {}
            plain.update({key: _plain(item, known) for key, item in value.items()})
        case list():
            plain = known[id(value)] = []
            plain.extend(_plain(item, known) for item in value)
        case tuple():
            plain = tuple(_plain(item, known) for item in value)
        case _:
            return value
    known[id(value)] = plain
    return plain
