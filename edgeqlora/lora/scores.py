"""What the statistics of a linear come to: entropy of its inputs, dimension of its update, sensitivity, NF4 error.

Entropy is Renyi's of order 2, in nats: -ln of the purity of a covariance of trace 1, whose exponential is the number of
directions that the rows fill evenly. (Shannon's, with which Roy and Vetterli 2007 define effective rank, needs many more
rows than a decoder hears.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeqlora.lora.statistics import LinearStatistics, Moments

TINY = 1e-30


class Scores(NamedTuple):
    """Of one linear, from two halves of the clips."""

    input_entropy: float
    """Of the covariance of the inputs, nats."""
    gradient_entropy: float
    """Of the second moment of the gradients at the outputs, nats."""
    sensitivity: float
    """First-order change of the loss for a relative change of the weight, without noise's share."""
    nf4_error: float | None
    """|E x| / |W x| over the inputs, E being what NF4 (or int8) lost of the weight; None where nothing is quantised."""

    @property
    def update_dimension(self) -> float:
        """Directions that an update of the weight can use: geometric mean of those of inputs and gradients."""
        return math.exp((self.input_entropy + self.gradient_entropy) / 2)


def scores_of(linear: LinearStatistics, first: int = 0, second: int = 1) -> Scores:
    """Scores from the product of two halves; the same half twice gives those of this half alone, with its noise in it."""
    a, b = linear.halves[first], linear.halves[second]
    product = float((a.product * b.product).sum())
    norms = float(a.product.norm() * b.product.norm())
    return Scores(
        input_entropy(a.inputs, b.inputs),
        -math.log(_purity(a.gradients, b.gradients, centred=False)),
        float(linear.weight.float().norm()) * math.sqrt(max(product, 1e-3 * norms)),
        _nf4_error(linear, {first, second}),
    )


def input_entropy(first: Moments, second: Moments) -> float:
    """Entropy of the covariance of the inputs that two halves of the clips gave, nats."""
    return -math.log(_purity(first, second, centred=True))


def eigenvalues(linear: LinearStatistics) -> Any:
    """Eigenvalues of the covariance of all inputs, the largest first: shape (in_features,)."""
    import torch

    return torch.linalg.eigvalsh(covariance(linear).double()).flip(0).clamp(min=0)


def covariance(linear: LinearStatistics) -> Any:
    """Covariance of all inputs, halves weighing the same: (in_features, in_features), fp32."""
    import torch

    a, b = (half.inputs for half in linear.halves)
    if a.square is None:
        rows = torch.cat([_rows(a, centred=True), _rows(b, centred=True)])
        return rows.T @ rows / len(rows)
    return (_matrix(a, True) + _matrix(b, True)) / 2


def second_moment(linear: LinearStatistics) -> Any:
    """Second moment of all inputs, not centred: (in_features, in_features), fp32."""
    a, b = (half.inputs for half in linear.halves)
    if a.square is None:
        import torch

        rows = torch.cat([_rows(a, centred=False), _rows(b, centred=False)])
        return rows.T @ rows / len(rows)
    return (a.square + b.square) / (a.n + b.n)


def _matrix(moments: Moments, centred: bool) -> Any:
    square = moments.square / moments.n
    if centred:
        mean = moments.total / moments.n
        square = square - mean[:, None] * mean[None, :]
    return square


def _rows(moments: Moments, centred: bool) -> Any:
    import torch

    rows = torch.cat(moments.rows)
    return rows - moments.total / moments.n if centred else rows


def _purity(a: Moments, b: Moments, centred: bool) -> float:
    """<C_a, C_b> / (tr C_a tr C_b): 1 where all rows lie on one line, 1 / width where they fill all directions."""
    if a.square is None:
        x, y = _rows(a, centred).double(), _rows(b, centred).double()
        inner = float(((x @ y.T) ** 2).sum()) / (len(x) * len(y))
        traces = float((x**2).sum()) / len(x) * float((y**2).sum()) / len(y)
    else:
        x, y = _matrix(a, centred).double(), _matrix(b, centred).double()
        inner, traces = float((x * y).sum()), float(x.trace() * y.trace())
    purity = inner / traces if traces > 0 else 1.0
    return min(max(purity, 1 / a.width), 1.0)


def _nf4_error(linear: LinearStatistics, which: set[int]) -> float | None:
    if linear.error is None:
        return None

    def energy(matrix: Any) -> float:
        total = 0.0
        for half in (linear.halves[i].inputs for i in which):
            if half.square is None:
                rows = _rows(half, centred=False)
                total += float(((rows @ matrix.T) ** 2).sum()) / len(rows)
            else:
                total += float(((matrix @ half.square) * matrix).sum()) / half.n
        return total

    whole = energy(linear.weight.float())
    return math.sqrt(max(energy(linear.error.float()), 0.0) / whole) if whole > 0 else 0.0


def relative(values: Sequence[float], exponent: float) -> list[float]:
    """Values over their geometric mean, to a power."""
    logs = [math.log(max(value, TINY)) for value in values]
    mean = math.fsum(logs) / len(logs)
    return [math.exp(exponent * (log - mean)) for log in logs]


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Correlation of ranks, ties sharing theirs; None where one of them is constant."""
    a, b = _positions(x), _positions(y)
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _positions(values: Sequence[float]) -> Any:
    _, where, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[where]
