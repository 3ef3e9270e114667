"""Graphs of tokens, their coarsening by a plan, and the spectral distance of the two (the paper's section 3.3).

Everything here is float64 and dense: it measures, it is no part of a model's forward. Eigenvalues are sorted, smallest
first, and compared rank by rank. On graphs of `1 - cos` the normalized distance has a closed form, `inside_shares`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .energy import cosine_graph
from .merge_plan import MergePlan

LAPLACIANS = ("normalized", "combinatorial")


def token_graph(metric: Tensor) -> Tensor:
    """Weights of the complete token graph, `W = 1 - cos` (eq. 3): `(B, N, C) -> (B, N, N)`, float64, diagonal 0."""
    weights = 1.0 - cosine_graph(metric.double())
    weights = 0.5 * (weights + weights.transpose(-1, -2))
    return weights.clamp_min(0.0).masked_fill(torch.eye(weights.shape[-1], dtype=torch.bool, device=metric.device), 0.0)


def laplacian(weights: Tensor, kind: str = "normalized") -> Tensor:
    """`L = D - W`, or `I - D^-1/2 W D^-1/2`: `(B, N, N) -> (B, N, N)`.

    A vertex of degree 0 (it can occur: tokens that are all alike) has D^-1/2 = 0, so its diagonal entry is 1.
    """
    if kind not in LAPLACIANS:
        raise ValueError(f"unknown laplacian {kind!r}: choose one of {', '.join(LAPLACIANS)}")
    degree = weights.sum(dim=-1)
    if kind == "combinatorial":
        return torch.diag_embed(degree) - weights
    scale = torch.where(degree > 0, degree.clamp_min(torch.finfo(degree.dtype).tiny).rsqrt(), 0.0)
    eye = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    return eye - scale[..., None] * weights * scale[..., None, :]


def spectrum(weights: Tensor, kind: str = "normalized") -> Tensor:
    """Eigenvalues of a Laplacian, ascending: `(B, N, N) -> (B, N)`."""
    return torch.linalg.eigvalsh(laplacian(weights.double(), kind))


def _membership(plan: MergePlan) -> Tensor:
    """`(B, M, N)` float64: 1 where a token belongs to a slot."""
    if not isinstance(plan, MergePlan) or plan.drops:
        raise ValueError("the spectral distance needs a partition: this plan drops tokens or is no MergePlan")
    slots = torch.arange(plan.num_tokens, device=plan.assignment.device)[None, :, None]
    return (plan.assignment[:, None, :] == slots).double()


def _check_graph(weights: Tensor, plan: MergePlan) -> None:
    batch, n = plan.assignment.shape
    if weights.shape != (batch, n, n):
        raise ValueError(f"the graph has shape {tuple(weights.shape)}, the plan asks for {(batch, n, n)}")
    if bool((weights < -1e-6).any()) or not torch.allclose(weights, weights.transpose(-1, -2), rtol=1e-5, atol=1e-6):
        raise ValueError("weights must be symmetric and not negative, up to rounding: give `1 - cos` or the like")


def coarsen(weights: Tensor, plan: MergePlan, reduce: str = "mean") -> Tensor:
    """Weights between groups of vertices, `(B, N, N) -> (B, M, M)`: means over pairs (the paper), or sums.

    Entry (i, i) is the mean (sum) over all pairs inside group i, the zero diagonal included. Padded slots get zeros.
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce must be 'mean' or 'sum', got {reduce!r}")
    member = _membership(plan)
    _check_graph(weights, plan)
    if reduce == "mean":
        member = member / member.sum(dim=-1, keepdim=True).clamp_min(1.0)
    return member @ weights.double() @ member.transpose(-1, -2)


def lift(coarse: Tensor, plan: MergePlan) -> Tensor:
    """The coarse graph on all vertices again, `Wl[u, v] = Wc[i(u), i(v)]`: `(B, M, M) -> (B, N, N)`."""
    member = _membership(plan)
    return member.transpose(-1, -2) @ coarse.double() @ member


def inside_shares(weights: Tensor, plan: MergePlan) -> Tensor:
    """Share of each group's degrees that goes to edges inside it, `W(V_i, V_i) / vol(V_i)`: `(B, N, N) -> (B, M)`.

    It is the chance that one step of a random walk stays in the group, and M minus the normalized cut of the
    partition when summed. For the weights `1 - cos` that sum *is* the spectral distance on the normalized Laplacian
    (derived in book/theorem.md); for other weights it need not be. 0 for a group of degree 0.
    """
    member = _membership(plan)
    _check_graph(weights, plan)
    inside = (member @ weights.double() * member).sum(dim=-1)
    return inside / (member @ weights.double()).sum(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)


def spectral_distance(
    metric: Tensor | None = None,
    plan: MergePlan | None = None,
    *,
    weights: Tensor | None = None,
    laplacian: str = "normalized",
) -> Tensor:
    """Sum of the differences between the sorted eigenvalues of a token graph and of its lifted coarsening (eq. 5).

    Args:
        metric: `(B, N, C)` tokens; the graph is `1 - cos`.
        plan: which tokens merge; it must be a partition.
        weights: `(B, N, N)` symmetric weights in place of a metric. Exactly one of the two is given; which one it is
            is never guessed from shapes.
        laplacian: `normalized` (the paper) or `combinatorial`.

    Returns:
        `(B,)` float64.
    """
    if plan is None or (metric is None) == (weights is None):
        raise ValueError("give a plan and exactly one of metric and weights")
    graph = token_graph(metric) if weights is None else weights.double()
    lifted = lift(coarsen(graph, plan), plan)
    return (spectrum(graph, laplacian) - spectrum(lifted, laplacian)).abs().sum(dim=-1)
