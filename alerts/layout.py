"""From an Avro writer schema to columns: which there are, and the program that fills them.

A packet is a tree; the layout lays it out as tables. The root table has one row per alert; every array of the schema
(``prv_candidates``, ``fp_hists``) is a table of its own with one row per item. A column is named by its path,
``candidate.jd`` or ``prv_candidates.magpsf``. The program is a list of instructions for the kernel of
:mod:`alerts.kernel`, one per leaf of the schema: a packet is decoded by walking it once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alerts import kernel

ROOT: Final = ""

# What later stages use; the other fields stay in the packet's own bytes.
_ALERT_FIELDS = """
    schemavsn objectId candid candidate xmatches
    candidate.jd candidate.fid candidate.pid candidate.diffmaglim candidate.programid candidate.candid
    candidate.isdiffpos candidate.nid candidate.rcid candidate.field candidate.ra candidate.dec candidate.magpsf
    candidate.sigmapsf candidate.magap candidate.sigmagap candidate.distnr candidate.magnr candidate.sigmagnr
    candidate.chinr candidate.sharpnr candidate.rb candidate.rbversion candidate.drb candidate.drbversion
    candidate.magapbig candidate.sigmagapbig candidate.sgscore1 candidate.sgmag1 candidate.srmag1 candidate.simag1
    candidate.szmag1 candidate.distpsnr1 candidate.objectidps1 candidate.ndethist candidate.ncovhist
    candidate.jdstarthist candidate.jdendhist candidate.rfid candidate.jdstartref candidate.jdendref
"""
_PRV_CANDIDATE_FIELDS = """
    jd fid pid diffmaglim programid candid isdiffpos nid ra dec magpsf sigmapsf magap sigmagap distnr magnr sigmagnr
    chinr sharpnr rb rbversion magapbig sigmagapbig
"""
_FP_HIST_FIELDS = """
    jd fid pid rfid programid forcediffimflux forcediffimfluxunc diffmaglim magzpsci distnr magnr sigmagnr chinr
    sharpnr procstatus
"""
STANDARD_FIELDS: Final = frozenset(
    [
        *_ALERT_FIELDS.split(),
        "prv_candidates",
        *(f"prv_candidates.{name}" for name in _PRV_CANDIDATE_FIELDS.split()),
        "fp_hists",
        *(f"fp_hists.{name}" for name in _FP_HIST_FIELDS.split()),
    ]
)

_INTEGERS: Final = frozenset({"int", "long"})
_NUMBERS: Final = _INTEGERS | {"float", "double"}
# Of what type a standard field is, if it is not a number; a field of that name but of another type is no column.
_KINDS: Final = {
    "schemavsn": frozenset({"string"}),
    "objectId": frozenset({"string"}),
    "candid": _INTEGERS,
    "isdiffpos": frozenset({"string", "boolean"}),
    "rbversion": frozenset({"string"}),
    "drbversion": frozenset({"string"}),
    "procstatus": frozenset({"string"}),
    "candidate": frozenset({"present"}),
    "prv_candidates": frozenset({"length"}),
    "fp_hists": frozenset({"length"}),
    "xmatches": frozenset({"offset"}),
}
_RAGGED: Final = ("prv_candidates", "fp_hists")

# A field without which a record is not an alert, and where else it may stand (Spark's rewriting drops the first).
REQUIRED_FIELDS: Final = {
    "objectId": ("objectId",),
    "candid": ("candid", "candidate.candid"),
    "jd": ("candidate.jd",),
    "ra": ("candidate.ra",),
    "dec": ("candidate.dec",),
}

_LEAF_OPS: Final = {
    "boolean": kernel.BOOLEAN,
    "int": kernel.INT,
    "long": kernel.LONG,
    "float": kernel.FLOAT,
    "double": kernel.DOUBLE,
    "string": kernel.STRING,
    "bytes": kernel.BYTES,
}
_MIN_BYTES: Final = {"null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "string": 1, "bytes": 1}
_PRIMITIVES: Final = frozenset(_MIN_BYTES)
_MAX_PROGRAM: Final = 100_000
_MAX_DEPTH: Final = 100
_MAX_SIZE: Final = 1 << 31


class SchemaError(ValueError):
    """The writer schema cannot be understood as Avro."""


@dataclass(frozen=True)
class Column:
    """One leaf of the schema.

    Attributes
    ----------
    path : str
        Dotted path in the packet.
    table : str
        Path of the array that it belongs to, :data:`ROOT` for the alert itself.
    kind : str
        Avro type; ``present`` says whether a nullable record is there, ``length`` the number of items of an array,
        ``offset`` the byte at which a field begins.
    slot : int
        Number of its storage in the kernel.
    symbols : tuple of str
        Of an enum.
    """

    path: str
    table: str
    kind: str
    slot: int
    symbols: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Names to follow from a row of the table to the value."""
        inside = self.path[len(self.table) :].lstrip(".")
        return tuple(inside.split(".")) if inside else ()


@dataclass(frozen=True)
class Layout:
    """Columns of a writer schema and the kernel's program for them.

    Attributes
    ----------
    columns : dict of str to Column
    tables : tuple of str
        Array paths, the root first; a table's parent stands before it.
    program : int64 array, shape (instructions, 4)
    targets : int64 array
        Jump targets of the unions.
    compiled : bool
        False where the schema contains itself: such packets are read by fastavro.
    """

    columns: dict[str, Column]
    tables: tuple[str, ...]
    program: NDArray[np.int64]
    targets: NDArray[np.int64]
    compiled: bool

    @cached_property
    def missing(self) -> list[str]:
        """Fields of :data:`REQUIRED_FIELDS` that the schema lacks."""
        return [name for name, paths in REQUIRED_FIELDS.items() if not any(path in self.columns for path in paths)]


def compile_layout(schema: Any, fields: frozenset[str] | None = STANDARD_FIELDS) -> Layout:
    """Lay out a writer schema.

    Parameters
    ----------
    schema : dict or list or str
        Parsed JSON of the writer schema.
    fields : frozenset of str, optional
        Paths wanted as columns; ``None`` takes all that can be columns (not what lies in maps or in unions of several
        types). Of :data:`STANDARD_FIELDS`, one of an unexpected type (a text for a magnitude, say) is left out, too.

    Raises
    ------
    SchemaError
        If the schema is not valid Avro; the message says where.
    """
    compiler = _Compiler(fields=fields)
    try:
        compiler.record(schema)
    except RecursionError as error:
        raise SchemaError("the schema is nested too deeply") from error
    layout = Layout(
        columns=compiler.columns,
        tables=tuple(compiler.tables),
        program=np.array(compiler.program, dtype=np.int64).reshape(-1, 4),
        targets=np.array(compiler.targets or [0], dtype=np.int64),
        compiled=not compiler.recursive,
    )
    # Other steps' messages, which are no alerts, may hold such a field anywhere.
    if compiler.xmatches_inside and not layout.missing:
        raise SchemaError("the field 'xmatches' is not the last one: it was not written by this pipeline")
    return layout


@dataclass
class SchemaReader:
    """Looks into the JSON of a schema: named types are looked up, parts are checked.

    Every method raises :class:`SchemaError` where the schema is not valid Avro.
    """

    named: dict[str, Any] = field(default_factory=dict)

    def resolve(self, schema: Any, space: str) -> tuple[str, Any, str]:
        """Type name, definition and namespace of a schema, named types looked up and registered."""
        if isinstance(schema, list):
            return "union", schema, space
        if isinstance(schema, str):
            if schema in _PRIMITIVES:
                return schema, schema, space
            for name in (f"{space}.{schema}", schema) if "." not in schema else (schema,):
                if name in self.named:
                    body = self.named[name]
                    return body["type"], body, name.rpartition(".")[0]
            raise SchemaError(f"unknown type {schema!r}")
        if not isinstance(schema, dict) or "type" not in schema:
            raise SchemaError(f"not a type: {json.dumps(schema)[:80]}")
        kind = schema["type"]
        if isinstance(kind, dict | list):
            return self.resolve(kind, space)
        if kind in ("record", "error", "enum", "fixed"):
            full = self.full_name(schema, space)
            self.named[full] = schema
            return kind, schema, full.rpartition(".")[0]
        if kind in ("array", "map") or kind in _PRIMITIVES:
            return kind, schema, space
        return self.resolve(kind, space)

    @staticmethod
    def full_name(schema: dict[str, Any], space: str) -> str:
        """Name of a named type with its namespace."""
        name = schema.get("name")
        if not isinstance(name, str) or not name:
            raise SchemaError(f"a {schema['type']} has no name")
        if "." in name:
            return name
        space = schema.get("namespace", space)
        return f"{space}.{name}" if space else name

    @staticmethod
    def fixed_size(body: dict[str, Any]) -> int:
        """Bytes of a fixed."""
        size = body.get("size")
        if not isinstance(size, int) or not 0 <= size < _MAX_SIZE:
            raise SchemaError(f"fixed {body.get('name')!r} has no size that can be")
        return size

    @staticmethod
    def part(body: dict[str, Any], key: str) -> Any:
        """Definition of an array's items or of a map's values."""
        if key not in body:
            raise SchemaError(f"{'a map' if key == 'values' else 'an array'} does not say of what")
        return body[key]

    @staticmethod
    def symbols(body: dict[str, Any]) -> tuple[str, ...]:
        """Symbols of an enum."""
        symbols = body.get("symbols")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise SchemaError(f"enum {body.get('name')!r} has no list of symbols")
        return tuple(symbols)

    @staticmethod
    def record_fields(body: dict[str, Any]) -> list[dict[str, Any]]:
        """Fields of a record, each with a name and a type."""
        items = body.get("fields")
        if not isinstance(items, list) or not all(
            isinstance(i, dict) and isinstance(i.get("name"), str) for i in items
        ):
            raise SchemaError(f"record {body.get('name')!r} has no list of named fields")
        for item in items:
            if "type" not in item:
                raise SchemaError(f"field {item['name']!r} has no type")
        return items


@dataclass
class _Compiler(SchemaReader):
    fields: frozenset[str] | None = None
    columns: dict[str, Column] = field(default_factory=dict)
    tables: list[str] = field(default_factory=lambda: [ROOT])
    program: list[list[int]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    open_names: list[str] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    recursive: bool = False
    xmatches_inside: bool = False
    depth: int = 0
    nodes: int = 0

    def record(self, schema: Any) -> None:
        kind, body, space = self.resolve(schema, "")
        if kind not in ("record", "error"):
            raise SchemaError(f"the schema describes {kind!r}, not a record")
        self.node(body, space, path="", table=ROOT)
        self.emit(kernel.END)

    # -- schema --------------------------------------------------------------------------------------------------

    def min_bytes(self, schema: Any, space: str, seen: tuple[int, ...] = ()) -> int:
        """Fewest bytes that a value can take: what bounds the item count that a hostile packet may claim."""
        kind, body, space = self.resolve(schema, space)
        if kind in _MIN_BYTES:
            return _MIN_BYTES[kind]
        if kind in ("array", "map", "enum"):
            return 1
        if kind == "fixed":
            return self.fixed_size(body)
        if kind == "union":
            return 1
        if id(body) in seen:
            return 0
        if id(body) not in self.sizes:
            inside = (*seen, id(body))
            self.sizes[id(body)] = sum(self.min_bytes(i["type"], space, inside) for i in self.record_fields(body))
        return self.sizes[id(body)]

    # -- program -------------------------------------------------------------------------------------------------

    def emit(self, op: int, a: int = -1, b: int = 0, c: int = 0) -> int:
        if len(self.program) >= _MAX_PROGRAM:
            raise SchemaError(f"the schema unfolds to more than {_MAX_PROGRAM:,} fields")
        self.program.append([op, a, b, c])
        return len(self.program) - 1

    def slot(self, path: str, table: str | None, kind: str, symbols: tuple[str, ...] = ()) -> int:
        """New column for a path, or -1 where it is not wanted or cannot be a column (`table` is None)."""
        if table is None or not self.wants(path, table, kind):
            return -1
        if path in self.columns:
            raise SchemaError(f"field {path!r} is defined twice")
        self.columns[path] = Column(path, table, kind, len(self.columns), symbols)
        return self.columns[path].slot

    def wants(self, path: str, table: str, kind: str) -> bool:
        if self.fields is None or path.endswith(".@present"):
            return True
        if path not in self.fields:
            return False
        if self.fields is not STANDARD_FIELDS:
            return True
        place, _, name = path.rpartition(".")
        return table == (place if place in _RAGGED else ROOT) and kind in _KINDS.get(name, _NUMBERS)

    def node(self, schema: Any, space: str, path: str, table: str | None, nullable: int = 0) -> None:
        """Instructions for one value. `nullable` is 1 or 2 if null is branch 0 or 1 of a union that leads here."""
        kind, body, space = self.resolve(schema, space)
        self.depth += 1
        self.nodes += 1
        if self.depth > _MAX_DEPTH:
            raise SchemaError("the schema is nested too deeply")
        if self.nodes > _MAX_PROGRAM:
            raise SchemaError(f"the schema unfolds to more than {_MAX_PROGRAM:,} fields")
        match kind:
            case "null":
                pass
            case "record" | "error":
                self.record_node(body, space, path, table)
            case "array":
                self.array_node(body, space, path, table)
            case "map":
                start = self.emit(kernel.MAP, -1, 0, 1)
                self.node(self.part(body, "values"), space, path, None)
                self.program[start][2] = self.emit(kernel.NEXT, -1, start)
            case "union":
                self.union_node(body, space, path, table)
            case "enum":
                symbols = self.symbols(body)
                self.emit(kernel.ENUM, self.slot(path, table, kind, symbols), nullable, len(symbols))
            case "fixed":
                self.emit(kernel.FIXED, self.slot(path, table, kind), nullable, self.fixed_size(body))
            case _:
                self.emit(_LEAF_OPS[kind], self.slot(path, table, kind), nullable)
        self.depth -= 1

    def record_node(self, body: dict[str, Any], space: str, path: str, table: str | None) -> None:
        name = self.full_name(body, space)
        if name in self.open_names:
            self.recursive = True
            return
        self.open_names.append(name)
        items = self.record_fields(body)
        for item in items:
            inside = f"{path}.{item['name']}" if path else item["name"]
            if inside == "xmatches" and table == ROOT:
                self.xmatches_inside = item is not items[-1]
                self.emit(kernel.OFFSET, self.slot(inside, table, "offset"))
                table_inside: str | None = None
            else:
                table_inside = table
            self.node(item["type"], space, inside, table_inside)
        self.open_names.pop()

    def array_node(self, body: dict[str, Any], space: str, path: str, table: str | None) -> None:
        items = self.part(body, "items")
        length = self.slot(path, table, "length")
        wanted = length >= 0
        number = -1
        if wanted:
            number = len(self.tables)
            self.tables.append(path)
        start = self.emit(kernel.ARRAY, number)
        self.emit(kernel.DATA, length)
        if wanted and isinstance(items, list):
            self.union_node(items, space, path, path, item=True)
        elif wanted and self.resolve(items, space)[0] not in ("record", "error"):
            self.node(items, space, f"{path}.item", path)
        else:
            self.node(items, space, path, path if wanted else None)
        self.program[start][2] = self.emit(kernel.NEXT, number, start)
        # Only now are the types known that the items define.
        item_bytes = self.min_bytes(items, space)
        if not item_bytes:
            raise SchemaError(f"the items of array {path!r} take no bytes: a packet could claim any number of them")
        self.program[start][3] = min(item_bytes, _MAX_SIZE)

    def union_node(self, branches: list[Any], space: str, path: str, table: str | None, item: bool = False) -> None:
        kinds = [self.resolve(branch, space)[0] for branch in branches]
        values = [number for number, kind in enumerate(kinds) if kind != "null"]
        if len(branches) == 2 and len(values) == 1 and kinds[values[0]] in {*_LEAF_OPS, "enum", "fixed"}:
            leaf_path = f"{path}.item" if item else path
            self.node(branches[values[0]], space, leaf_path, table, nullable=2 - values[0])
            return
        if len(values) != 1:
            table = None
        first = len(self.targets)
        self.targets.extend([0] * len(branches))
        self.emit(kernel.UNION, -1, len(branches), first)
        jumps = []
        for number, branch in enumerate(branches):
            self.targets[first + number] = len(self.program)
            if kinds[number] in ("record", "error"):
                name = f"{path}.@present" if item else path
                self.emit(kernel.PRESENT, self.slot(name, table, "present"))
            inner = f"{path}.item" if item and kinds[number] not in ("record", "error") else path
            self.node(branch, space, inner, table)
            jumps.append(self.emit(kernel.JUMP))
        for jump in jumps:
            self.program[jump][1] = len(self.program)
