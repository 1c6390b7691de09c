"""Execution traces of MLCommons Chakra: files of operators and exchanges with what each waits for.

A file is a metadata message and then a node an operator or exchange, each behind its length (a varint), as other tools
of Chakra write and read them (schema ``et_def.proto`` of github.com/mlcommons/chakra, package ``ChakraProtoMsg``). The
messages are made here from the numbers of their fields, so that nothing is generated; needs the package ``protobuf``.
Attributes keep the types that readers expect: ``num_ops``, ``comm_type`` and ``comm_size`` are int64, ``tensor_size``
uint64, ``comm_src``, ``comm_dst`` and ``comm_tag`` int32.
"""

from __future__ import annotations

import gzip
import heapq
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trnsim.errors import InputError, UnsupportedError

METADATA, MEM_LOAD, MEM_STORE, COMPUTE, SEND, RECEIVE, COLLECTIVE = range(1, 8)
KINDS = ("invalid", "metadata", "memory load", "memory store", "compute", "send", "receive", "collective")
COLLECTIVES = (
    "all_reduce", "reduce", "all_gather", "gather", "scatter", "broadcast", "all_to_all", "reduce_scatter",
    "reduce_scatter_block", "barrier",
)  # fmt: skip
VERSION = "0.0.4"
Value = float | int | bool | str | bytes | tuple[Any, ...]

# Kinds of attributes, in the order of their fields: each a single value, and then a list of them.
_VALUES = (
    "double", "float", "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64", "sfixed32",
    "sfixed64", "bool", "string", "bytes",
)  # fmt: skip
_INT32, _INT64, _UINT64 = "int32_val", "int64_val", "uint64_val"
_TYPES = {
    "num_ops": _INT64, "comm_type": _INT64, "comm_size": _INT64, "tensor_size": _UINT64, "comm_src": _INT32,
    "comm_dst": _INT32, "comm_tag": _INT32, "comm_priority": _INT32,
}  # fmt: skip
_LONGEST = 1 << 30  # bytes of a message


@dataclass(frozen=True)
class Node:
    """An operator or exchange.

    Attributes:
        kind: ``COMPUTE``, ``COLLECTIVE`` ...; ``data``, ``control``: numbers of the nodes that it waits for.
        start_us, duration_us: whole microseconds, as the format has them.
        attributes: by name; lists are tuples.
    """

    number: int
    name: str
    kind: int
    data: tuple[int, ...] = ()
    control: tuple[int, ...] = ()
    start_us: int = 0
    duration_us: int = 0
    attributes: Mapping[str, Value] = field(default_factory=dict)

    @property
    def collective(self) -> str:
        """The collective's name; "" for other nodes."""
        return COLLECTIVES[int(self.attributes.get("comm_type", 0))] if self.kind == COLLECTIVE else ""  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trace:
    """Nodes of one rank, in the order of the file."""

    nodes: tuple[Node, ...]
    metadata: Mapping[str, Value] = field(default_factory=dict)
    version: str = VERSION


def write(trace: Trace, path: str | Path) -> None:
    """Write a trace, whole or not at all.

    Raises:
        InputError: the file cannot be written.
        UnsupportedError: the package ``protobuf`` is not installed.
    """
    data, path = encoded(trace), Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def encoded(trace: Trace) -> bytes:
    """The bytes of a trace's file.

    Raises:
        UnsupportedError: the package ``protobuf`` is not installed.
    """
    known = messages()
    head = known["GlobalMetadata"](version=trace.version)
    for name, value in trace.metadata.items():
        _put(head.attr, name, value)
    parts = [_framed(head)]
    for node in trace.nodes:
        message = known["Node"](
            id=node.number, name=node.name, type=node.kind, ctrl_deps=node.control, data_deps=node.data,
            start_time_micros=node.start_us, duration_micros=node.duration_us,
        )  # fmt: skip
        for name, value in node.attributes.items():
            _put(message.attr, name, value)
        parts.append(_framed(message))
    return b"".join(parts)


def read(path: str | Path) -> Trace:
    """Read a trace; files that gzip packed too.

    Raises:
        InputError: a file that does not hold, nodes that wait for others that there are not, or for themselves.
        UnsupportedError: the package ``protobuf`` is not installed.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    known = messages()
    parts = list(_unframed(data, path))
    if not parts:
        raise InputError(f"{path}: no Chakra trace: it is empty")
    head = _parsed(known["GlobalMetadata"](), parts[0], path)
    nodes = []
    for part in parts[1:]:
        one = _parsed(known["Node"](), part, path)
        nodes.append(
            Node(
                one.id, one.name, one.type, tuple(one.data_deps), tuple(one.ctrl_deps), one.start_time_micros,
                one.duration_micros, {a.name: _got(a) for a in one.attr},
            )
        )  # fmt: skip
    trace = Trace(tuple(nodes), {a.name: _got(a) for a in head.attr}, head.version)
    _check(trace, path)
    return trace


def length_us(trace: Trace, durations: Mapping[int, float] | None = None) -> float:
    """How long a rank takes: computation in one queue, exchanges in another, each node once what it waits for is done.

    Args:
        durations: microseconds by node, instead of those of the file.

    Raises:
        InputError: nodes that wait for each other.
    """
    done: dict[int, float] = {}
    free = {False: 0.0, True: 0.0}
    for node in _ordered(trace):
        exchange = node.kind in (SEND, RECEIVE, COLLECTIVE)
        ready = max((done[other] for other in (*node.data, *node.control)), default=0.0)
        took = node.duration_us if durations is None else durations.get(node.number, node.duration_us)
        if node.kind != METADATA:
            ready = max(ready, free[exchange])
            free[exchange] = ready + took
        done[node.number] = ready + took
    return max(done.values(), default=0.0)


def _ordered(trace: Trace) -> Iterator[Node]:
    """Each node after those that it waits for, otherwise in the order of the file."""
    waiting: dict[int, int] = {}
    behind: dict[int, list[Node]] = {}
    ready = []
    for node in trace.nodes:
        needs = {*node.data, *node.control}
        waiting[node.number] = len(needs)
        for other in needs:
            behind.setdefault(other, []).append(node)
        if not needs:
            ready.append(node)
    place = {node.number: i for i, node in enumerate(trace.nodes)}
    heap = [(place[node.number], node.number) for node in ready]
    heapq.heapify(heap)
    count = 0
    while heap:
        node = trace.nodes[heapq.heappop(heap)[0]]
        count += 1
        yield node
        for next_ in behind.get(node.number, ()):
            waiting[next_.number] -= 1
            if not waiting[next_.number]:
                heapq.heappush(heap, (place[next_.number], next_.number))
    if count < len(trace.nodes):
        stuck = [node.number for node in trace.nodes if waiting[node.number]]
        raise InputError(f"nodes of the trace wait for each other: {stuck[:5]}", value=len(stuck))


def _check(trace: Trace, path: Path) -> None:
    numbers = {node.number for node in trace.nodes}
    if len(numbers) < len(trace.nodes):
        raise InputError(f"{path}: two nodes have one number")
    for node in trace.nodes:
        lost = [other for other in (*node.data, *node.control) if other not in numbers]
        if lost:
            raise InputError(f"{path}: node {node.number} ({node.name}) waits for {lost[0]}, which is not there")


def _put(attributes: Any, name: str, value: Value) -> None:
    made = attributes.add(name=name)
    if isinstance(value, tuple):
        kind = "double" if any(isinstance(v, float) for v in value) else "string" if _texts(value) else "int64"
        getattr(made, f"{kind}_list").values.extend(value)
        return
    kinds = {bool: "bool_val", int: _INT64, float: "double_val", str: "string_val", bytes: "bytes_val"}
    setattr(made, _TYPES.get(name, kinds[type(value)]), value)


def _texts(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, str) for value in values)


def _got(attribute: Any) -> Value:
    which = attribute.WhichOneof("value")
    if which is None:
        return ""
    value = getattr(attribute, which)
    found: Value = tuple(value.values) if which.endswith("_list") else value
    return found


def _framed(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    size, head = len(data), bytearray()
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + data


def _unframed(data: bytes, path: Path) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = shift = 0
        while True:
            if at >= len(data) or shift > 28:
                raise InputError(f"{path}: no Chakra trace: a length is cut off")
            byte = data[at]
            at, size, shift = at + 1, size | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        if size > _LONGEST or at + size > len(data):
            raise InputError(f"{path}: no Chakra trace: a message of {size} bytes is cut off", value=len(data) - at)
        yield data[at : at + size]
        at += size


def _parsed(message: Any, data: bytes, path: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise InputError(f"{path}: no Chakra trace: {error}") from None
    return message


@cache
def messages() -> dict[str, Any]:
    """Classes of the schema's messages by name, in a pool of their own.

    Raises:
        UnsupportedError: the package ``protobuf`` is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise UnsupportedError("Chakra traces need the package protobuf: pip install 'trnsim[chakra]'") from error
    of = descriptor_pb2.FieldDescriptorProto
    package = "ChakraProtoMsg"
    file = descriptor_pb2.FileDescriptorProto(name="trnsim/et_def.proto", package=package, syntax="proto3")

    def message(name: str, fields: list[tuple[str, int, str, bool]], choice: str = "") -> None:
        made = file.message_type.add(name=name)
        if choice:
            made.oneof_decl.add(name=choice)
        for title, number, kind, repeated in fields:
            one = made.field.add(name=title, number=number, label=of.LABEL_REPEATED if repeated else of.LABEL_OPTIONAL)
            if kind[0].isupper():
                one.type_name = f".{package}.{kind}"
                one.type = of.TYPE_ENUM if kind == "NodeType" else of.TYPE_MESSAGE
            else:
                one.type = getattr(of, f"TYPE_{kind.upper()}")
            if choice and number > 2:
                one.oneof_index = 0

    kinds = file.enum_type.add(name="NodeType")
    names = ("INVALID", "METADATA", "MEM_LOAD", "MEM_STORE", "COMP", "COMM_SEND", "COMM_RECV", "COMM_COLL")
    for number, name in enumerate(names):
        kinds.value.add(name=f"{name}_NODE", number=number)
    for form in _VALUES:
        message(f"{form.capitalize()}List", [("values", 1, form, True)])
    values = [("name", 1, "string", False), ("doc_string", 2, "string", False)]
    for place, value in enumerate(_VALUES):
        values += [
            (f"{value}_val", 3 + 2 * place, value, False),
            (f"{value}_list", 4 + 2 * place, f"{value.capitalize()}List", False),
        ]
    message("AttributeProto", values, "value")
    message("GlobalMetadata", [("version", 1, "string", False), ("attr", 2, "AttributeProto", True)])
    texts = [(name, number, "string", False) for number, name in enumerate(("values", "shapes", "types"), 1)]
    message("IOInfo", texts)
    message(
        "Node",
        [
            ("id", 1, "uint64", False), ("name", 2, "string", False), ("type", 3, "NodeType", False),
            ("ctrl_deps", 4, "uint64", True), ("data_deps", 5, "uint64", True),
            ("start_time_micros", 6, "uint64", False), ("duration_micros", 7, "uint64", False),
            ("inputs", 8, "IOInfo", False), ("outputs", 9, "IOInfo", False), ("attr", 10, "AttributeProto", True),
        ],
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    wanted = ("GlobalMetadata", "Node", "AttributeProto")
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in wanted}
