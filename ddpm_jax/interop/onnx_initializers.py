"""The constants of an ONNX model: each once, and none that nothing uses.

The branches of a condition, such as those of guidance that is limited to an interval of timesteps, are graphs of their own, and
jax2onnx gives each its own copy of the parameters, with constants of their shapes that no node uses. ONNX Runtime warns of
each of these when it loads a model.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

MIN_SHARED_BYTES = 256  # smaller constants stay where they are


def tidy(model: Any) -> None:
    """Remove unused constants of an `onnx.ModelProto` and share equal ones, in place."""
    main, known = model.graph, dict[bytes, str]()
    for graph in _graphs(main):
        results, renamed, dropped = {output.name for output in graph.output}, {}, []
        used = results | _operands(graph)
        for index, constant in enumerate(graph.initializer):
            shared = constant.ByteSize() >= MIN_SHARED_BYTES and constant.name not in results
            content = _digest(constant) if shared else b""
            if constant.name not in used or content in known:
                dropped.append(index)
                renamed[constant.name] = known.get(content, "")
            elif shared and graph is main:
                known[content] = constant.name
            elif shared:  # the constants of the main graph are known in all others
                known[content] = renamed[constant.name] = f"shared_{len(known)}"
                main.initializer.add().CopyFrom(constant)
                main.initializer[-1].name = known[content]
                dropped.append(index)
        for index in reversed(dropped):
            del graph.initializer[index]
        for node in (node for each in _graphs(graph) for node in each.node):
            node.input[:] = [renamed.get(name, name) for name in node.input]


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph, then those inside it."""
    yield graph
    for inner in _inner(graph):
        yield from _graphs(inner)


def _inner(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.graphs
            if attribute.HasField("g"):
                yield attribute.g


def _operands(graph: Any) -> set[str]:
    """What the nodes of a graph use, and the graphs inside it."""
    found = {name for each in _graphs(graph) for node in each.node for name in node.input}
    return found | {output.name for each in _graphs(graph) for output in each.output}


def _digest(constant: Any) -> bytes:
    unnamed = type(constant)()
    unnamed.CopyFrom(constant)
    unnamed.ClearField("name")
    return hashlib.sha256(unnamed.SerializeToString(deterministic=True)).digest()
