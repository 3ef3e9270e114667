"""Graphs of tokens, their coarsening by a plan, and the spectral distance of the two (the paper's section 3.3).

These functions measure and are not part of a forward call, so they use dense float64 matrices. Eigenvalues are sorted,
smallest first, and compared rank by rank. For weights `1 - cos` and the normalized Laplacian the distance has a closed
form: the sum of `inside_shares`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import tensor, word
from .energy import cosine_graph
from .merge_plan import MergePlan

LAPLACIANS = ("normalized", "combinatorial")


def token_graph(metric: Tensor) -> Tensor:
    """Weights of the complete token graph, `W = 1 - cos` (eq. 3): `(B, N, C) -> (B, N, N)`, float64, diagonal 0.

    A zero vector has weight 1 to all others and 0 to itself, as if it had a direction of its own.
    ValueError for tokens with NaN or infinity, which have no cosine.
    """
    broken = int((~tensor(metric, "metric", (None, None, None)).isfinite().all(dim=-1)).sum())
    if broken:
        raise ValueError(f"the metric has NaN or infinity in {broken} of {metric.shape[:2].numel()} tokens")
    weights = 1.0 - cosine_graph(metric.double())
    weights = 0.5 * (weights + weights.transpose(-1, -2))
    return weights.clamp_min(0.0).masked_fill(torch.eye(weights.shape[-1], dtype=torch.bool, device=metric.device), 0.0)


def laplacian(weights: Tensor, kind: str = "normalized") -> Tensor:
    """`L = D - W`, or `I - D^-1/2 W D^-1/2`: `(B, N, N) -> (B, N, N)`.

    A vertex of degree 0, which occurs when all tokens are alike, has D^-1/2 = 0, so its diagonal entry is 1.
    ValueError unless weights are finite, symmetric and not negative, up to rounding.
    """
    word(kind, "laplacian", LAPLACIANS)
    _check_graph(weights)
    degree = weights.sum(dim=-1)
    if kind == "combinatorial":
        return torch.diag_embed(degree) - weights
    scale = torch.where(degree > 0, degree.clamp_min(torch.finfo(degree.dtype).tiny).rsqrt(), 0.0)
    eye = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    return eye - scale[..., None] * weights * scale[..., None, :]


def spectrum(weights: Tensor, kind: str = "normalized") -> Tensor:
    """Eigenvalues of a Laplacian, ascending: `(B, N, N) -> (B, N)`."""
    return torch.linalg.eigvalsh(laplacian(tensor(weights, "weights", (None, None, None)).double(), kind))


def _membership(plan: MergePlan) -> Tensor:
    """`(B, M, N)` float64: 1 where a token belongs to a slot."""
    if not isinstance(plan, MergePlan) or plan.drops:
        raise ValueError("the spectral distance needs a partition: this plan drops tokens or is no MergePlan")
    slots = torch.arange(plan.num_tokens, device=plan.assignment.device)[None, :, None]
    return (plan.assignment[:, None, :] == slots).double()


def _check_graph(weights: Tensor, shape: tuple[int | None, ...] | None = None) -> None:
    """ValueError unless weights are those of graphs, of the shape that a plan asks for (None: square matrices)."""
    size = tensor(weights, "weights", (None, None, None) if shape is None else shape).shape
    if size[1] != size[2]:
        raise ValueError(f"weights must be a square matrix per item, got shape {tuple(size)}")
    if not bool(weights.isfinite().all()):
        raise ValueError("weights must be finite, got NaN or infinity")
    if bool((weights < -1e-6).any()) or not torch.allclose(weights, weights.transpose(-1, -2), rtol=1e-5, atol=1e-6):
        raise ValueError("weights must be symmetric and not negative, up to rounding: give `1 - cos` or the like")


def coarsen(weights: Tensor, plan: MergePlan, reduce: str = "mean") -> Tensor:
    """Weights between groups of vertices, `(B, N, N) -> (B, M, M)`: means over pairs (the paper), or sums.

    Entry (i, i) is the mean (sum) over all pairs inside group i, the zero diagonal included. Padded slots get zeros.

    Example:
        >>> import torch, pitome_core as pc
        >>> from pitome_core.spectral import coarsen
        >>> weights = torch.tensor([[[0.0, 1.0, 2.0], [1.0, 0.0, 4.0], [2.0, 4.0, 0.0]]])
        >>> coarsen(weights, pc.MergePlan.from_roots(torch.tensor([[0, 0, 2]]))).tolist()
        [[[0.5, 3.0], [3.0, 0.0]]]
    """
    word(reduce, "reduce", ("mean", "sum"))
    member = _membership(plan)
    _check_graph(weights, (*plan.shape, plan.shape[1]))
    if reduce == "mean":
        member = member / member.sum(dim=-1, keepdim=True).clamp_min(1.0)
    return member @ weights.double() @ member.transpose(-1, -2)


def lift(coarse: Tensor, plan: MergePlan) -> Tensor:
    """The coarse graph on all vertices again, `Wl[u, v] = Wc[i(u), i(v)]`: `(B, M, M) -> (B, N, N)`.

    Example:
        >>> import torch, pitome_core as pc
        >>> from pitome_core.spectral import lift
        >>> lift(torch.tensor([[[0.5, 3.0], [3.0, 0.0]]]), pc.MergePlan.from_roots(torch.tensor([[0, 0, 2]]))).tolist()
        [[[0.5, 0.5, 3.0], [0.5, 0.5, 3.0], [3.0, 3.0, 0.0]]]
    """
    member = _membership(plan)
    _check_graph(coarse, (plan.shape[0], plan.num_tokens, plan.num_tokens))
    return member.transpose(-1, -2) @ coarse.double() @ member


def inside_shares(weights: Tensor, plan: MergePlan) -> Tensor:
    """Share of each group's degrees that belongs to edges inside it, `W(V_i, V_i) / vol(V_i)`: `(B, N, N) -> (B, M)`.

    It is the probability that a step of a random walk stays in the group; 0 for a group of degree 0. The sum over the
    groups is M minus the normalized cut of the partition. For weights `1 - cos` the sum *is* the spectral distance on
    the normalized Laplacian (derived in book/theorem.md), with zero vectors as in `token_graph`; for other weights it
    need not be.
    """
    member = _membership(plan)
    _check_graph(weights, (*plan.shape, plan.shape[1]))
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
        metric: `(B, N, C)` tokens; the graph is `1 - cos` (eq. 3).
        plan: which tokens merge; it must be a partition.
        weights: `(B, N, N)` symmetric weights in place of a metric. Give exactly one of the two, by name: shapes do not
            tell which one it is.
        laplacian: `normalized` (the paper) or `combinatorial`.

    Returns:
        `(B,)` float64.

    Raises:
        ValueError, TypeError: not exactly one of metric and weights; a plan that drops tokens; weights that are no
            graph; NaN or infinity.

    Example:
        Merging equal tokens changes nothing; merging different ones does.

        >>> import torch, pitome_core as pc
        >>> tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> equal, different = (pc.MergePlan.from_roots(torch.tensor([root])) for root in ([0, 0, 2], [0, 1, 0]))
        >>> [round(pc.spectral_distance(tokens, plan).item(), 4) for plan in (equal, different)]
        [0.0, 0.6667]
    """
    if plan is None or (metric is None) == (weights is None):
        raise ValueError("give a plan and exactly one of metric and weights")
    graph = token_graph(metric) if weights is None else tensor(weights, "weights", (None, None, None)).double()
    lifted = spectrum(lift(coarsen(graph, plan), plan), laplacian)
    return (spectrum(graph, laplacian) - lifted).abs().sum(dim=-1)
