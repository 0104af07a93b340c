"""Where adapters start: at what the inputs of a layer vary in (eva), or at what NF4 took from the base (qera)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.lora.scores import covariance, second_moment
from edgeqlora.lora.statistics import LinearStatistics

INITS = ("random", "eva", "qera")
"""random: PEFT's own, A random and B 0. eva: A along the inputs' largest variance (arXiv 2410.07170), B 0. qera: A and B
together make up for as much of NF4's error at the output as their rank can (arXiv 2410.06040)."""

FLOOR = 1e-4
"""Least eigenvalue of a second moment, of its mean: directions without inputs must not be divided by 0."""


def check_init(init: str) -> None:
    """Raise UserError for an initialisation that is not known."""
    if init not in INITS:
        raise UserError(f"init={init!r}: allowed are {', '.join(INITS)}")


def start_weights(init: str, linear: LinearStatistics, rank: int, scaling: float) -> tuple[Any, Any]:
    """(A, B) of shapes (rank, in_features) and (out_features, rank), fp32; `scaling` is alpha / rank."""
    import torch

    out_features = linear.weight.shape[0]
    if init == "eva":
        # Rows as long as those of PEFT's random ones, so that a learning rate means the same.
        a = _eigenvectors(covariance(linear))[1][:, :rank].T / math.sqrt(3)
        return a.float().contiguous(), torch.zeros(out_features, rank)
    assert linear.error is not None, "qera needs the error of a quantised base"
    values, vectors = _eigenvectors(second_moment(linear))
    roots = values.clamp(min=FLOOR * float(values.mean())).sqrt()
    # The best rank-r answer to |(E - s B A) C^(1/2)|: the singular vectors of E C^(1/2), taken back by C^(-1/2).
    u, s, vt = torch.linalg.svd(linear.error.double() @ (vectors * roots), full_matrices=False)
    half = s[:rank].sqrt()
    a = (half[:, None] * vt[:rank] / roots) @ vectors.T
    b = u[:, :rank] * half / scaling
    return a.float().contiguous(), b.float().contiguous()


def save_start(
    path: Path, init: str, statistics: Sequence[LinearStatistics], ranks: Mapping[str, int], alpha: Mapping[str, float]
) -> None:
    """Write the first weights of all adapters as safetensors: `NAME.lora_A`, `NAME.lora_B`."""
    from safetensors.torch import save_file

    weights = {}
    for linear in statistics:
        if rank := ranks[linear.name]:
            a, b = start_weights(init, linear, rank, alpha[linear.name] / rank)
            weights[f"{linear.name}.lora_A"], weights[f"{linear.name}.lora_B"] = a.cpu(), b.cpu()
    save_file(weights, path, metadata={"init": init})


def put_start(model: Any, path: Path, rank: Mapping[str, int]) -> None:
    """Put the weights of `save_start` into the adapters of a PEFT model. Raises UserError where they do not fit."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: the first weights of the adapters cannot be read: {error}; make the ranks again"
        ) from error
    modules = dict(model.get_base_model().named_modules())
    with torch.no_grad():
        for name in rank:
            for part in ("lora_A", "lora_B"):
                target = getattr(modules[name], part)["default"].weight
                given = weights.pop(f"{name}.{part}", None)
                if given is None or given.shape != target.shape:
                    raise UserError(
                        f"{path}: {name}.{part} has shape {None if given is None else tuple(given.shape)}, needed is "
                        f"{tuple(target.shape)}: the file belongs to other ranks; make them again"
                    )
                target.copy_(given)
    if weights:
        raise UserError(f"{path} has {len(weights)} weights more than ranks.json has ranks, first {min(weights)}")


def _eigenvectors(matrix: Any) -> tuple[Any, Any]:
    """Eigenvalues, the largest first, and vectors as columns, whose largest entry is positive: the same on each run."""
    import torch

    values, vectors = torch.linalg.eigh(matrix.double())
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()
