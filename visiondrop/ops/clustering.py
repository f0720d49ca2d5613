"""Clustering of tokens by density peaks (Rodriguez and Laio 2014, nearest-neighbour densities), for SparseVLM."""

import torch
from torch import Tensor

from .selection import gather_rows

NOISE = 1e-6


def density_peaks(states: Tensor, clusters: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Density-peak clustering: centres are dense and far from anything denser.

    Args:
        states: [I, m, D] float32; clusters: C <= m; noise: [I, m] in [0, 1), breaks ties of density.

    Returns:
        (centres [I, C] long in 0 … m-1, strongest first; labels [I, m] long in 0 … C-1).
    """
    distance = torch.cdist(states, states) / states.shape[-1] ** 0.5  # [I, m, m]
    near = distance.topk(clusters, dim=-1, largest=False).values
    density = (-(near**2).mean(dim=-1)).exp() + noise * NOISE
    denser = density[:, None, :] > density[:, :, None]
    far = distance.flatten(1).amax(dim=1)[:, None, None]
    separation = torch.where(denser, distance, far).amin(dim=-1)
    centres = (density * separation).topk(clusters, dim=1).indices
    to_centre = gather_rows(distance, centres)  # [I, C, m]
    own = torch.arange(clusters, device=centres.device).expand_as(centres)
    return centres, to_centre.argmin(dim=1).scatter(1, centres, own)
