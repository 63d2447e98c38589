"""The custom operator: schema and fake are right; a compiled or exported ``polish`` is one node per stage."""

from __future__ import annotations

import pytest
import torch

from ssa_fast import Affinity, InputWarning, polish
from ssa_fast.ops import custom_op
from ssa_fast.validation import StageRequest

B, K, C, H, W = 2, 3, 20, 6, 7


def arguments(**changed):
    """Return the flat arguments of ``torch.ops.ssa_fast.polish_stage``, in its schema's order."""
    given = dict(
        cam=torch.rand(B, K, 4, 4),
        features=torch.rand(B, C, H, W),
        phi="relu",
        power=1.0,
        threshold=0.0,
        shift=1.0,
        temperature=None,
        center=False,
        steps=1,
        norm_eps=1e-5,
        sum_eps=1e-5,
        nonnegative=None,
        method="auto",
        backend="triton",
        precision="default",
        align_corners=True,
    )
    assert changed.keys() <= given.keys()
    return tuple((given | changed).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {},
        dict(method="prototypes", nonnegative=True, features=torch.rand(B, C, H, W).half()),
        dict(method="prototypes", phi="shifted", shift=0.5, center=True, features=torch.randn(B, C, H, W)),
        dict(method="tiled", center=True, steps=2),
        dict(method="resident", phi="exp", temperature=0.2),
        dict(backend="torch", features=torch.rand(B, C, H, W).to(memory_format=torch.channels_last)),
        dict(backend="torch", features=torch.rand(B, C, H, W, dtype=torch.float64)),
        dict(backend="torch", phi="shifted", shift=0.5, features=torch.randn(B, C, H, W)),
    ],
    ids=["auto", "prototypes", "shifted", "tiled", "resident", "torch", "float64", "shifted"],
)
def test_opcheck(changed):
    torch.library.opcheck(torch.ops.ssa_fast.polish_stage.default, arguments(**changed))


def call(cam, low, high):
    """Polish two stages with fusion, and one stage alone in two ways: every kind of call."""
    return (
        polish(cam, [low, high], backend="triton"),
        polish(cam, low, affinity=Affinity(center=True, steps=2), method="tiled", backend="triton"),
        polish(cam, low - 0.5, affinity=Affinity(phi="shifted", shift=0.5), method="prototypes", backend="triton"),
    )


def inputs(size=6):
    return torch.rand(B, K, 4, 4), torch.rand(B, C, size, size + 1), torch.rand(B, 2 * C, 3, 4)


@pytest.mark.slow
def test_compiled_without_a_break_and_the_same():
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(call, fullgraph=True, backend=keep)
    for size in (6, 6, 8, 9):  # the third size makes the compiler take sizes as symbols
        given = inputs(size)
        torch.testing.assert_close(compiled(*given), call(*given), rtol=1e-6, atol=1e-7)
    for graph in graphs:
        nodes = [str(node.target) for node in graph.graph.nodes if "ssa_fast" in str(node.target)]
        assert nodes == ["ssa_fast.polish_stage"] * 4
    assert len(graphs) <= 2


@pytest.mark.slow
def test_exported_and_the_same():
    class Module(torch.nn.Module):
        def forward(self, cam, low, high):
            return call(cam, low, high)

    given = inputs()
    exported = torch.export.export(Module(), given)
    nodes = [node for node in exported.graph.nodes if node.target == torch.ops.ssa_fast.polish_stage.default]
    assert len(nodes) == 4
    torch.testing.assert_close(exported.module()(*given), call(*given), rtol=1e-6, atol=1e-7)


def test_the_operator_is_polish():
    cam, low, _ = inputs()
    request = StageRequest(low, Affinity(), K=cam.shape[1], dtype=torch.float32)
    torch.testing.assert_close(custom_op.polish_stage(cam, request), polish(cam, low), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(custom_op.polish_stage(cam, request), polish(cam, low), rtol=0, atol=0)


def test_a_refusal_reaches_the_caller_of_a_compiled_function():
    compiled = torch.compile(lambda cam, f: polish(cam, f, method="prototypes", backend="triton"), backend="eager")
    with pytest.raises(ValueError, match="a negative value"):
        compiled(torch.rand(B, K, 4, 4), torch.randn(B, C, H, W))


def test_wrong_input_is_refused_while_compiling():
    compiled = torch.compile(lambda cam, f: polish(cam, f, backend="triton"), backend="eager")
    with pytest.raises(ValueError, match="expected the CAM's batch of 2, got 3"):
        compiled(torch.rand(B, K, 4, 4), torch.rand(3, C, H, W))


def test_a_lost_gradient_is_noted_outside_the_graph():
    compiled = torch.compile(lambda cam, f: polish(cam, f, method="dense", backend="torch"), backend="eager")
    cam, f = torch.rand(B, K, H, W), torch.rand(B, C, H, W)  # of one size: traced, a CAM is resized otherwise
    with pytest.warns(InputWarning, match="requires_grad=True"):
        out = compiled(cam, f.clone().requires_grad_())
    torch.testing.assert_close(out, polish(cam, f, method="dense", backend="torch"), rtol=0, atol=0)
