"""What is checked of an ONNX graph before it is loaded, since it may be a stranger's. Needs nothing but Python.

ONNX Runtime runs no code that a graph brings along, but a graph can name files outside its folder, operators of
libraries, loops without end and sizes without measure. A graph of ours has none of these. The file is read by the
wire format of protobuf, field by field, without decoding its weights.
"""

from collections.abc import Iterator
from typing import NoReturn

from persephonee.multi_exit.errors import ModelFileError

MAX_GRAPH_BYTES = 512 * 2**20
MAX_NODES = 20_000
MAX_RANK = 8
MAX_ELEMENTS = 2**28
"""Of one weight."""
MAX_EXTENT = 4096
"""Of kernels, strides, paddings and dilations."""

OPERATORS = frozenset(
    [
        "Abs",
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Conv",
        "DepthToSpace",
        "DequantizeLinear",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Flatten",
        "Gather",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LeakyRelu",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "PRelu",
        "Pad",
        "Pow",
        "QuantizeLinear",
        "Reciprocal",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Selu",
        "Shape",
        "Sigmoid",
        "Sign",
        "Slice",
        "Softmax",
        "Softplus",
        "Softsign",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Swish",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
"""What CNNs consist of: no loops, no branches, no functions. A chain of these can still ask for much memory, which no
table of operators prevents."""

_EXTENTS = frozenset({b"kernel_shape", b"strides", b"pads", b"dilations"})

Field = tuple[int, int | memoryview]
"""The number of a field, and an integer, or the bytes of a message or a text."""


def check_graph(data: bytes) -> None:
    """Refuse a graph that holds anything else than the operators of a CNN and their weights.

    Raises:
        ModelFileError: the sentence says what it holds.
    """
    if len(data) > MAX_GRAPH_BYTES:
        _refuse(f"it has {len(data)} bytes, expected at most {MAX_GRAPH_BYTES}")
    try:
        _check_model(memoryview(data))
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        if isinstance(error, ModelFileError):
            raise
        _refuse(f"it is cut off or damaged: {error}")


def _check_model(data: memoryview) -> None:
    graphs = 0
    for number, value in _fields(data):
        if number == 7:
            graphs += 1
            _check_graph(_message(value))
        elif number == 8:
            domain = next((bytes(_message(v)) for n, v in _fields(_message(value)) if n == 1), b"")
            if domain not in (b"", b"ai.onnx"):
                _refuse(f"it asks for operators of {domain[:40]!r}")
        elif number in (20, 25):
            _refuse("it holds functions or training of its own")
    if graphs != 1:
        _refuse(f"it holds {graphs} graphs")


def _check_graph(data: memoryview) -> None:
    nodes = 0
    for number, value in _fields(data):
        if number == 1:
            nodes += 1
            _check_node(_message(value))
        elif number == 5:
            _check_tensor(_message(value))
        elif number == 15:
            _refuse("it holds sparse weights")
    if not 0 < nodes <= MAX_NODES:
        _refuse(f"it has {nodes} operators, expected 1 to {MAX_NODES}")


def _check_node(data: memoryview) -> None:
    operator, domain = b"", b""
    for number, value in _fields(data):
        if number == 4:
            operator = bytes(_message(value))
        elif number == 7:
            domain = bytes(_message(value))
        elif number == 5:
            _check_attribute(_message(value))
    if domain not in (b"", b"ai.onnx") or operator.decode() not in OPERATORS:
        _refuse(f"it has the operator {(domain + b':' + operator).strip(b':')[:60].decode(errors='replace')!r}")


def _check_attribute(data: memoryview) -> None:
    name, integers = b"", []
    for number, value in _fields(data):
        if number == 1:
            name = bytes(_message(value))
        elif number in (5, 10):
            _check_tensor(_message(value))
        elif number in (6, 11, 22, 23):
            _refuse("an operator holds a graph, or sparse weights")
        elif number == 3 and isinstance(value, int):
            integers.append(value)
        elif number == 8:
            integers += [value] if isinstance(value, int) else list(_varints(value))
    if name in _EXTENTS and any(not 0 <= extent <= MAX_EXTENT for extent in integers):
        _refuse(f"{name.decode()} is out of its range")


def _check_tensor(data: memoryview) -> None:
    elements, dims = 1, []
    for number, value in _fields(data):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 13 or (number == 14 and value != 0):
            _refuse("its weights lie in another file")
    for dim in dims:
        elements *= dim
    if len(dims) > MAX_RANK or elements > MAX_ELEMENTS:
        _refuse("a weight is too large")


def _fields(data: memoryview) -> Iterator[Field]:
    """Yield the fields of a message; numbers of a fixed width, which nothing is asked of, as 0."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
        elif kind == 2:
            length, place = _varint(data, place)
            if length > len(data) - place:
                raise ValueError("a length reaches beyond its end")
            yield key >> 3, data[place : place + length]
            place += length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
            if place > len(data):
                raise ValueError("a number reaches beyond its end")
            yield key >> 3, 0
        else:
            raise ValueError(f"a field of the unknown kind {kind}")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number has no end")


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _refuse(reason: str) -> NoReturn:
    raise ModelFileError(f"the graph is refused ({reason}): it is none that persephonee wrote, write it again.")
