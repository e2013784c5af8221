"""Tables that unpack codes give the same bits as arithmetic on one code after the other."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitfront.artefact.onnx.graph import Graph
from bitfront.artefact.onnx.unpacking import Container, contained

pytestmark = pytest.mark.runtime

CONTAINERS = [
    Container(bits, width)
    for width in (2, 4, 8)
    for bits in (2, 3, 4, 5, 6, 8)
    if bits <= width and not (width == 4 and bits == 2)
]
SIGNED = [Container(bits, 8, is_signed=True) for bits in (2, 3, 4, 5, 6, 8)]


def wanted(codes: list[int], container: Container) -> list[int]:
    """The bytes, by arithmetic."""
    if container.is_signed:
        return [code - 2 ** (container.bits - 1) for code in codes]
    together, width = 8 // container.width, container.width
    widened = [code * 2 ** (width - container.bits) for code in codes]
    rows = [widened[first : first + together] for first in range(0, len(codes), together)]
    return [sum(value << (width * place) for place, value in enumerate(row)) for row in rows]


@pytest.mark.parametrize("container", [*CONTAINERS, *SIGNED], ids=str)
@settings(max_examples=8, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_codes_become_what_arithmetic_makes_of_them(
    container: Container, length: int, seed: int
) -> None:
    count = length * 8 // container.width
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 2**container.bits, (count,), generator=generator, dtype=torch.uint8)
    graph = Graph()
    found = contained(graph, "codes", drawn, container, (length,))
    graph.output(graph.cast(found, 1), "found", (length,))

    session = onnxruntime.InferenceSession(graph.model({}).SerializeToString())
    (values,) = session.run(None, {})

    assert np.asarray(values).tolist() == wanted(drawn.tolist(), container)
