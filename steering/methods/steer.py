"""Input-aware activation steering: MLLMEraser (arXiv 2510.04217), built on AlphaSteer (2506.07022).

The published map of a layer is `h' = h + λ · W P h`, with `P` the projection onto the null space of
the retain activations and `W` the ridge solution of `W P H_f = d 1ᵀ`. Every target column is the
same direction `d`, hence `W P = d wᵀ` has rank one: a scalar gate `w · h` times a direction. Only
the rank-one form is kept; k concepts make a map of rank k.

Shapes: `H` are activations `[n, width]`, one row a token; all results are float64, as solved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.hidden.bank import SteerGuard


def contrast(erasure: Tensor, recall: Tensor) -> Tensor:
    """Direction `d = mean h(erasure) - mean h(recall)`.

    Takes `[n, ..., width]` and `[m, ..., width]`, gives `[..., width]`: leading dimensions after
    the first (answer positions, layers) are contrasted one by one. MLLMEraser, section 3.2.
    """
    return erasure.double().mean(0) - recall.double().mean(0)


def gram(activations: Tensor) -> Tensor:
    """`Hᵀ H`, `[width, width]`: all that the null space needs to know of the retain set."""
    h = activations.double()
    return h.T @ h


def null_space(retain_gram: Tensor, null_share: float) -> Tensor:
    """Orthonormal basis `V_k [width, k]` of the retain activations' span that is projected away.

    `null_share` in (0, 1) is the share of directions that count as the (numerical) null space:
    those of the smallest singular values. `P = I - V_k V_kᵀ`; AlphaSteer keeps 0.3 to 0.6.
    """
    if not 0.0 < null_share < 1.0:
        raise ValueError(f"null_share must lie between 0 and 1, not {null_share}")
    width = retain_gram.shape[0]
    keep = round(width * (1.0 - null_share))
    # eigenvalues ascend: the last `keep` span what the retain set uses
    vectors: Tensor = torch.linalg.eigh(retain_gram.double()).eigenvectors
    return vectors[:, width - keep :]


def project(h: Tensor, basis: Tensor) -> Tensor:
    """`P h = h - V_k V_kᵀ h` for rows `h [n, width]`."""
    h = h.double()
    return h - (h @ basis) @ basis.T


def hard_gate(forget: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """The gate `w [width]` of the published closed form, solved in the dual.

    `W P = d wᵀ` with `w = X (Xᵀ X + γ I)⁻¹ 1` and `X = P H_f`: an n x n system instead of the
    width x width pseudo-inverse of the paper's equation for `W`.
    """
    x = project(forget, basis)
    ones = torch.ones(len(x), dtype=x.dtype)
    kernel = x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype)
    weights: Tensor = torch.linalg.solve(kernel, ones)
    return x.T @ weights


def soft_gate(forget: Tensor, retain_gram: Tensor, ridge: float, forget_weight: float) -> Tensor:
    """The gate with the projection's hard edge softened: every retain direction by its energy.

    `w = argmin Σ_f a (w·h - 1)² + Σ_r (w·h)² + γ |w|²`, with `a` = `forget_weight` and γ = `ridge`
    times the mean retain energy per direction. As γ → 0 it tends to the null-space solution when
    the retain set leaves a null space, and it stays defined when the set has full rank (many
    retain tokens), where the hard projection has to cut through directions that both sets use.
    """
    f = forget.double()
    width = f.shape[1]
    gamma = ridge * retain_gram.diagonal().mean()
    system = retain_gram + forget_weight * gram(f) + gamma * torch.eye(width, dtype=f.dtype)
    gate: Tensor = torch.linalg.solve(system, forget_weight * f.sum(0))
    return gate


@dataclass(frozen=True)
class FittedSteer:
    """A steering guard as it was fitted; `recheck` None decides on the prompt alone."""

    tensors: SteerGuard
    threshold: float
    strength: float
    recheck: float | None


def load(
    name: str,
    tensors: Mapping[str, NDArray[np.float32]],
    settings: Mapping[str, Any],
    depth: int,
) -> FittedSteer:
    """From an artifact: `gates [sense layers, width]` and `directions [act layers, width]`.

    `settings` are as `guard fit steer` writes them; its `schedule` holds the share of the
    directions at the token where the guard fires and at those that follow.

    Raises ValueError where something is missing, of the wrong shape or outside the model.
    """
    try:
        schedule = torch.tensor([float(share) for share in settings["schedule"]])
        guard = SteerGuard(
            name=name,
            sense_layers=tuple(int(layer) for layer in settings["sense_layers"]),
            gates=torch.tensor(tensors["gates"]),
            act_layers=tuple(int(layer) for layer in settings["act_layers"]),
            directions=schedule[:, None, None] * torch.tensor(tensors["directions"])[None],
            pool=int(settings["pool"]),
            rest=int(settings["rest"]),
        )
        recheck = settings["recheck"]
        fitted = FittedSteer(
            tensors=guard,
            threshold=float(settings["threshold"]),
            strength=float(settings["strength"]),
            recheck=None if recheck is None else float(recheck),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a steering guard needs {error}") from error
    outside = [i for i in (*guard.sense_layers, *guard.act_layers) if not 0 <= i < depth]
    if outside:
        raise ValueError(f"layers {outside} do not exist in a model of {depth} layers")
    figures = (fitted.threshold, fitted.strength, fitted.recheck or 0.0, *schedule.tolist())
    if not all(map(math.isfinite, figures)):  # nothing is larger than NaN: it would never fire
        raise ValueError("threshold, strength, recheck and schedule must be finite numbers")
    return fitted
