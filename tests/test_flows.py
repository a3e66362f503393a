"""Flows: determinants against autograd, invertible, densities that integrate to one, orthonormal matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.flows import Flow, PlanarFlow, amortised_flows, orthonormal, reflected, through

KINDS = ["orthogonal", "householder", "triangular", "planar"]


def made(
    kind: str, dim: int, batch: int = 1, flows: int = 4, scale: float = 1.0, columns: int = 8, dtype=torch.float64
) -> list[Flow]:
    """Flows whose parameters are N(0, scale²)."""
    builder = amortised_flows(kind, dim, columns, reflections=3)
    generator = torch.Generator().manual_seed(3)
    return builder(
        (scale * torch.randn(batch, flows, builder.size, generator=generator, dtype=torch.float64)).to(dtype)
    )


def jacobian(flow: Flow, z: Tensor) -> Tensor:
    """∂z′/∂z of a flow of one observation at each of z (S, D), (S, D, D)."""
    z = z.clone().requires_grad_()
    moved, _ = flow(z[:, None])
    rows = [torch.autograd.grad(part.sum(), z, retain_graph=True)[0] for part in moved[:, 0].unbind(1)]
    return torch.stack(rows, dim=1)


def inverse(flow: Flow, target: Tensor) -> Tensor:
    """z with flow(z) = target, (S, D): Newton's method that takes of 1, ½, ¼ … the step that helps most."""
    z, steps = target.clone(), 0.5 ** torch.arange(12.0, dtype=torch.float64)
    for _ in range(60):
        residual = flow(z[:, None])[0][:, 0] - target
        if float(residual.abs().max()) < 1e-10:
            return z
        move = torch.linalg.solve(jacobian(flow, z), residual)
        tried = z - steps[:, None, None] * move
        errors = (flow(tried.flatten(0, 1)[:, None])[0].view(tried.shape) - target).norm(dim=-1)
        z = tried[errors.argmin(0), torch.arange(len(z))]
    raise AssertionError("a flow could not be inverted")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_determinant_is_autograds(kind: str, dim: int) -> None:
    """Of each flow, positive; and the sum over flows that of the composition, for every observation."""
    flows = made(kind, dim, batch=3, scale=2.0, columns=2)
    start = z = torch.randn(4, 3, dim, dtype=torch.float64)
    total = torch.zeros(4, 3, dtype=torch.float64)
    for flow in flows:
        z.requires_grad_()
        moved, given = flow(z)
        rows = [torch.autograd.grad(part, z, retain_graph=True)[0] for part in moved.flatten()]
        full = torch.stack(rows).view(12, dim, 12, dim)
        of_each = full[range(12), :, range(12)]
        assert float(full.abs().sum() - of_each.abs().sum()) == pytest.approx(0, abs=1e-9)  # samples do not mix
        sign, log_det = torch.linalg.slogdet(of_each)
        assert (sign > 0).all()
        torch.testing.assert_close(given.detach(), log_det.view(4, 3))
        z, total = moved.detach(), total + given.detach()
    _, given = through(flows, start)
    torch.testing.assert_close(given, total)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flow_is_invertible(kind: str) -> None:
    flows = made(kind, 3, scale=1.5)
    z = 3 * torch.randn(200, 3, dtype=torch.float64)
    last, _ = through(flows, z[:, None])
    back = last[:, 0]
    for flow in reversed(flows):
        back = inverse(flow, back)
    torch.testing.assert_close(back, z, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_density_integrates_to_one(kind: str) -> None:
    """q(z) = N(z_0; 0, I)/det of what three flows make of a standard normal, summed over a grid."""
    flows = made(kind, 2, flows=3, scale=0.8 if kind == "planar" else 1.2)
    line = torch.linspace(-10, 10, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    first = grid
    for flow in reversed(flows):
        first = inverse(flow, first)
    again, log_det = through(flows, first[:, None])
    torch.testing.assert_close(again[:, 0], grid, atol=1e-7, rtol=0)
    log_q = -0.5 * first.square().sum(1) - math.log(2 * math.pi) - log_det[:, 0]
    area = float((line[1] - line[0]) ** 2)
    assert float(log_q.exp().sum()) * area == pytest.approx(1, abs=2e-3)
    assert abs(float((log_q + log_det[:, 0]).exp().sum()) * area - 1) > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_step_the_flow_is_the_identity(kind: str) -> None:
    builder = amortised_flows(kind, 3, columns=2, reflections=2)
    parameters = torch.randn(2, 4, builder.size, dtype=torch.float64)
    if kind == "planar":
        parameters[..., :3] = 0  # u
    else:
        parameters[..., : builder.columns**2] = 0  # R₁ and the upper triangle of R₂
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    last, log_det = through(builder(parameters), z)
    torch.testing.assert_close(last, z)
    torch.testing.assert_close(log_det, torch.zeros(5, 2, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e3])
def test_numbers_stay_finite_in_single_precision(kind: str, scale: float) -> None:
    flows = made(kind, 4, batch=50, scale=scale, dtype=torch.float32)
    z = torch.randn(20, 50, 4, requires_grad=True)
    last, log_det = through(flows, z)
    assert torch.isfinite(last).all()
    assert torch.isfinite(log_det).all()
    (gradient,) = torch.autograd.grad(log_det.sum() + last.sum(), z)
    assert torch.isfinite(gradient).all()


def test_planar_flow_is_published_where_it_needs_no_constraint_and_keeps_it_elsewhere() -> None:
    """û = u where wᵀu = 0; elsewhere wᵀû > −1, however far u points the other way."""
    w, b = torch.tensor([[1.0, 0.0]]), torch.zeros(1)
    z = torch.tensor([[[0.3, -0.2]]])
    moved, log_det = PlanarFlow(torch.tensor([[0.0, 2.0]]), w, b)(z)
    torch.testing.assert_close(moved, torch.tensor([[[0.3, -0.2 + 2 * math.tanh(0.3)]]]))
    torch.testing.assert_close(log_det, torch.zeros(1, 1))
    line = torch.linspace(-3, 3, 301)
    along = PlanarFlow(torch.tensor([[-5.0, 0.0]]), w, b)(torch.stack([line, line], dim=1)[:, None])[0][:, 0, 0]
    assert (along.diff() > 0).all()


@pytest.mark.parametrize("shape", [(16, 8), (8, 8), (3, 1), (1, 1)])
def test_columns_become_orthonormal_and_the_nearest(shape: tuple[int, int]) -> None:
    """QᵀQ = I to 1e-6, and Q = UVᵀ of the singular value decomposition."""
    matrix = torch.randn(300, *shape, dtype=torch.float64)
    q = orthonormal(matrix)
    eye = torch.eye(shape[1], dtype=torch.float64)
    assert float((q.mT @ q - eye).flatten(1).norm(dim=1).max()) < 1e-6
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(q, u @ vh, atol=1e-6, rtol=0)
    single = orthonormal(matrix.float())
    assert float((single.mT @ single - eye).abs().max()) < 1e-5


def test_iteration_reaches_nearly_singular_matrices() -> None:
    u, _, vh = torch.linalg.svd(torch.randn(20, 6, 4, dtype=torch.float64), full_matrices=False)
    values = torch.tensor([1.0, 0.1, 1e-3, 1e-5], dtype=torch.float64)
    torch.testing.assert_close(orthonormal((u * values) @ vh), u @ vh, atol=1e-6, rtol=0)


def test_reflections_are_multiplied_in_order() -> None:
    v = torch.randn(5, 3, 4, dtype=torch.float64)
    q, eye = reflected(v), torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(q.mT @ q, eye.expand(5, 4, 4))
    one, two, three = (eye - 2 * a[:, :, None] * a[:, None] / a.square().sum(1)[:, None, None] for a in v.unbind(1))
    torch.testing.assert_close(q, one @ two @ three)


def test_triangular_flows_alternate_the_order_of_latents() -> None:
    flows = made("triangular", 3, flows=3)
    eye = torch.eye(3, dtype=torch.float64)
    for flow, q in zip(flows, [eye, eye.flip(0), eye], strict=True):
        torch.testing.assert_close(flow.q[0], q)  # type: ignore[attr-defined]


def test_matrices_are_triangular_with_diagonals_below_one() -> None:
    """The two upper triangles are those of one full matrix and of its transpose."""
    builder = amortised_flows("triangular", 3, columns=8, reflections=8)
    parameters = 3 * torch.randn(2, 1, builder.size, dtype=torch.float64)
    (flow,) = builder(parameters)
    full = parameters[:, 0, :9].view(2, 3, 3)
    for matrix, source in ((flow.r1, full), (flow.r2, full.mT)):  # type: ignore[attr-defined]
        assert torch.equal(matrix.triu(1), source.triu(1))
        assert torch.equal(matrix.tril(-1), torch.zeros_like(matrix))
        assert float(matrix.diagonal(dim1=1, dim2=2).abs().max()) < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("radial", 2, 8, 8), "model.flow is 'radial'"),
        (("orthogonal", 2, 0, 8), "model.columns is 0"),
        (("householder", 2, 8, 0), "model.reflections is 0"),
    ],
)
def test_mistakes_are_named(settings: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        amortised_flows(*settings)
