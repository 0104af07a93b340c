"""Neighbouring encoder frames that 4-bit weights cannot tell apart, merged inside the encoder: a research switch.

Two frames that differ by less than what NF4 itself changes at the projections of the attention are one frame to the
quantised model. Keys of merged frames get + ln(size) in the attention, so that n equal frames and one of size n weigh
the same (proportional attention: Bolya et al. 2023, arXiv 2210.09461, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeqlora.errors import UserError
from edgeqlora.models.family import Learner
from edgeqlora.models.quantised import nf4_round_trip, plain_model

LONGEST_RUN = 4
"""Most frames that become one: 80 ms of speech."""


def check_merging(kappa: float, after: int) -> None:
    """UserError for a kappa that is no number of at least 0, or a number of layers below 0."""
    if not (math.isfinite(kappa) and kappa >= 0):
        raise UserError(f"merge_frames={kappa:g}: allowed is a number from 0 (off), such as 1")
    if after < 0:
        raise UserError(f"merge_after={after}: allowed is a number of encoder layers from 0, such as 1")


@dataclass(frozen=True)
class Counts:
    """Frames that went into the layers behind the merge, and how many of them became part of a neighbour."""

    speech: int = 0
    speech_merged: int = 0
    padding: int = 0
    padding_merged: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))


class FrameMerger:
    """Merges frames of a learner's encoder, before layer `after`, where novelty <= kappa x noise.

    With x the frames as the attention of that layer hears them, m the mean of the run so far, W its query, key and value
    weights and E what NF4 changes of them: novelty = |W (x - m)|^2, noise = |E m|^2. Runs have at most LONGEST_RUN
    frames, and no run holds speech and padding.

    originals: the same model with its weights before quantisation, where the learner's own are 4-bit already.
    Raises UserError for a layer that is not there.
    """

    def __init__(self, learner: Learner, kappa: float, after: int = 1, originals: Learner | None = None):
        import torch

        check_merging(kappa, after)
        self.learner, self.kappa, self.after = learner, kappa, after
        self._model, self._layers = plain_model(learner.model), learner.layer_stacks()["encoder"]
        if after >= len(self._layers):
            raise UserError(
                f"merge_after={after}: the encoder has {len(self._layers)} layers, and at least one must see merged "
                f"frames: allowed are 0 to {len(self._layers) - 1}"
            )
        names = {id(module): name for name, module in self._model.named_modules()}
        self._name = f"{names[id(self._layers[after])]}."
        self.encoder = self._model.get_submodule(names[id(self._layers)].rpartition(".")[0])
        self._norm, linears = learner.attention(self._layers[after])
        with torch.no_grad():
            self.w_form = sum(_form(_applied(linear)) for linear in linears)
            self.e_form = sum(_form(_lost(weight)) for weight in _own_weights(originals or learner, after))
            self.w_form, self.e_form = (form.to(self._model.device) for form in (self.w_form, self.e_form))
        self.n_valid: Sequence[int] = ()
        """Of each clip of the next batch, as Processor.n_valid_frames gives it: who calls the model sets it."""
        self.counts = Counts()
        """Of the last batch."""
        self.is_on = True
        self._bias: Any = None
        self._run_of: Any = None

    def starts(self, hidden: Any, n_frames: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Frames that begin a run, shape (batch, n_frames); hidden: (batch, n_frames, d_model).

        n_frames: how many of each row are speech; the first frame of padding always begins a run.
        """
        novelty, noise = novelty_and_noise(self._norm(hidden).float(), self.w_form, self.e_form)
        return run_starts((novelty <= self.kappa * noise).cpu().numpy(), n_frames)

    @contextmanager
    def merging(self) -> Iterator[FrameMerger]:
        """Inside the `with`, the learner's model merges frames, while `is_on`; after it, it is as before."""
        layers = list(self._layers)[self.after :]
        handles = [layers[0].register_forward_pre_hook(self._merge, with_kwargs=True)]
        handles += [layer.register_forward_pre_hook(self._weigh, with_kwargs=True) for layer in layers[1:]]
        listeners = [self._model.get_submodule(name) for name in self.learner.blocks().get("cross", ())]
        handles += [module.register_forward_pre_hook(self._weigh_keys, with_kwargs=True) for module in listeners]
        if not listeners:  # outputs of the encoder are moments in time: each frame gets back its own
            handles.append(layers[-1].register_forward_hook(self._spread))
        self.learner.on_rows = self._keep_rows
        try:
            yield self
        finally:
            self.learner.on_rows = None
            for handle in handles:
                handle.remove()

    def _merge(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        import torch

        self._bias = self._bias_of_all = self._run_of = None
        if not self.is_on:
            return None
        hidden, mask, others, kwargs = _arguments(args, kwargs)
        batch, n, _ = hidden.shape
        assert len(self.n_valid) == batch, f"n_valid of {len(self.n_valid)} clips for a batch of {batch}"
        n_frames = [min(n, self.learner.counted(self._name, valid, None).stop) for valid in self.n_valid]
        starts = self.starts(hidden, n_frames)
        self.counts = count(starts, n_frames)
        if starts.all():
            return None
        run_of = starts.cumsum(1) - 1
        sizes = np.zeros((batch, int(run_of.max()) + 1), np.int64)
        np.add.at(sizes, (np.arange(batch)[:, None], run_of), 1)
        first = np.minimum(sizes.cumsum(1) - sizes, n - 1)
        first, sizes, self._run_of = (torch.from_numpy(x).to(hidden.device) for x in (first, sizes, run_of))
        self._bias = self._bias_of_all = _bias(sizes, first, mask, hidden.dtype)
        return (mean_of_runs(hidden, first, sizes), self._bias, *others), kwargs

    def _weigh(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._bias is None:
            return None
        hidden, _, others, kwargs = _arguments(args, kwargs)
        return (hidden, self._bias, *others), kwargs

    def _weigh_keys(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if self._bias is None else (args, {**kwargs, "attention_mask": self._bias})

    def _spread(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if self._run_of is None:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.gather(1, self._run_of[:, :, None].expand(-1, -1, hidden.shape[-1]))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def take_all_rows(self) -> None:
        """Before the decoder reads the whole batch again: rows that it dropped count as before."""
        self._bias = self._bias_of_all

    def _keep_rows(self, keep: Any) -> None:
        if self._bias is not None:
            self._bias = self._bias[keep]


def _own_weights(learner: Learner, layer: int) -> list[Any]:
    """Query, key and value weights of an encoder layer without adapters, each (out_features, in_features)."""
    _, linears = learner.attention(learner.layer_stacks()["encoder"][layer])
    return [getattr(linear, "base_layer", linear).weight.detach() for linear in linears]


def novelty_and_noise(x: Any, w_form: Any, e_form: Any, longest: int = LONGEST_RUN) -> tuple[Any, Any]:
    """|W (x_t - m)|^2 and |E m|^2, where m is the mean of the c frames before t, each of shape (batch, n, longest - 1).

    x: (batch, n, d) float32; the last axis is c - 1. w_form, e_form: W'W and E'E, (d, d). Where fewer than c frames
    are before t, the novelty is infinite and the noise 0.
    """
    import torch

    batch, n, _ = x.shape
    novelty = torch.full((batch, n, longest - 1), math.inf, device=x.device)
    noise = torch.zeros((batch, n, longest - 1), device=x.device)
    steps = x[:, 1:] - x[:, :-1]  # x_t - m in steps: no difference of large numbers
    w_steps, e_x = steps @ w_form, x @ e_form
    step_products = [(w_steps[:, : n - 1 - k] * steps[:, k:]).sum(-1) for k in range(min(longest, n) - 1)]
    products = [(e_x[:, : n - k] * x[:, k:]).sum(-1) for k in range(min(longest, n) - 1)]
    for c in range(1, min(longest, n)):
        # x_t - m = sum over j = 1 ... c of (j / c) x (step j of the c steps that end at t)
        novelty[:, c:, c - 1] = noise[:, c:, c - 1] = 0
        for i in range(c):
            for j in range(i, c):
                twice = (1 if i == j else 2) / c**2
                length = n - c
                novelty[:, c:, c - 1] += twice * (i + 1) * (j + 1) * step_products[j - i][:, i : i + length]
                noise[:, c:, c - 1] += twice * products[j - i][:, i : i + length]
    return novelty, noise


def run_starts(joins: npt.NDArray[np.bool_], n_speech: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Go along the frames: which of them begin a run, shape (batch, n).

    joins: (batch, n, longest - 1): whether frame t may join the run of the c frames before it, c - 1 on the last axis.
    """
    batch, n, _ = joins.shape
    joins = np.concatenate([joins, np.zeros((batch, n, 1), bool)], axis=2)
    rows, starts, size = np.arange(batch), np.ones((batch, n), bool), np.ones(batch, np.int64)
    for row, first in enumerate(n_speech):
        joins[row, first : first + 1] = False
    for t in range(1, n):
        joined = joins[rows, t, size - 1]
        starts[:, t] = ~joined
        size = np.where(joined, size + 1, 1)
    return starts


def mean_of_runs(hidden: Any, first: Any, sizes: Any) -> Any:
    """Mean frame of each run, (batch, n_runs, d_model): first and sizes, (batch, n_runs), say where each lies in hidden.

    A run of size 0, which fills a short row up, repeats the frame at `first`.
    """
    d_model, last = hidden.shape[-1], hidden.shape[1] - 1
    total = None
    for k in range(int(sizes.max())):
        part = hidden.gather(1, (first + k).clamp(max=last)[:, :, None].expand(-1, -1, d_model)).float()
        total = part if total is None else total + part.masked_fill((sizes <= k)[:, :, None], 0)
    return (total / sizes.clamp(min=1)[:, :, None]).to(hidden.dtype)


def _bias(sizes: Any, first: Any, mask: Any, dtype: Any) -> Any:
    """What is added to the logits of the keys, (batch, 1, 1, n_runs): ln(size), or the lowest number for no key."""
    import torch

    lowest = torch.finfo(dtype).min
    bias = sizes.clamp(min=1).float().log().to(dtype).masked_fill(sizes == 0, lowest)
    if mask is not None:
        given = mask[:, 0, 0].expand(len(sizes), -1).gather(1, first)
        bias = bias.masked_fill(~given if given.dtype == torch.bool else given < 0, lowest)
    return bias[:, None, None]


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]]:
    """Of a call of an encoder layer: frames, attention mask, the other positional arguments, and the other named ones."""
    kwargs = dict(kwargs)
    hidden = args[0] if args else kwargs.pop("hidden_states")
    mask = args[1] if len(args) > 1 else kwargs.pop("attention_mask", None)
    return hidden, mask, args[2:], kwargs


def count(starts: npt.NDArray[np.bool_], n_frames: Sequence[int]) -> Counts:
    """Frames of speech and of padding, and how many of them do not begin a run; starts: (batch, n)."""
    is_speech = np.arange(starts.shape[1]) < np.asarray(n_frames)[:, None]
    return Counts(
        int(is_speech.sum()),
        int((~starts & is_speech).sum()),
        int((~is_speech).sum()),
        int((~starts & ~is_speech).sum()),
    )


def _form(weight: Any) -> Any:
    return weight.T @ weight


def _applied(linear: Any) -> Any:
    """The weight that a linear applies, adapter and 4-bit values included, float32 (out_features, in_features)."""
    import torch

    base = getattr(linear, "base_layer", linear)
    dtype = base.bias.dtype if base.bias is not None else getattr(base, "compute_dtype", None) or base.weight.dtype
    unit = torch.eye(base.in_features, dtype=dtype, device=base.weight.device)
    return (linear(unit).float() - linear(torch.zeros_like(unit[:1])).float()).T


def _lost(weight: Any) -> Any:
    """What NF4 takes off a weight, float32."""
    return weight.float() - nf4_round_trip(weight, weight.dtype)
