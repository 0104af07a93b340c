"""`edgeqlora ranks`: one pass over some clips, and from it a rank for each linear within a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from edgeqlora.card import library_versions
from edgeqlora.errors import UserError
from edgeqlora.lora.allocate import Layer, allocate, budget_of
from edgeqlora.lora.initialise import check_init, save_start
from edgeqlora.lora.modes import MODES, check_mode, ranks_of, weights_of
from edgeqlora.lora.ranks import SCHEMA
from edgeqlora.lora.scores import Scores, eigenvalues, scores_of, spearman
from edgeqlora.lora.statistics import LinearStatistics, collect
from edgeqlora.models.placement import parse_placement
from edgeqlora.models.quantised import NAMES
from edgeqlora.settings import TrainSettings, make_settings
from edgeqlora_jetson.board.machine import measure_peak_rss_mib, read_machine
from edgeqlora_jetson.files import sha256_file, write_json

Say = Callable[[str], object]

SCALING = 2.0
"""alpha / rank of a layer of the mean rank: what training takes where no alpha is given."""
AGREES = 0.9
"""Rank correlation of the ranks from the two halves of the clips, below which the tool says that they disagree."""


@dataclass(frozen=True)
class Plan:
    """How scores become ranks. The budget is that of `mean_rank` in every linear."""

    mode: str = "ear"
    mean_rank: int = 8
    least: int = 2
    """Lowest rank of every linear."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Factor of a group's part of the budget, by group."""
    by_size: bool = False
    """Attention and feed-forward linears of a group get parts of their own."""
    seed: int = 0
    """Of the mode `permuted`."""
    init: str = "random"
    """Where the adapters start: random, eva or qera."""
    adapt: str = "all"
    """Linears that get ranks, as in `train`; the budget is over these."""

    def verify(self) -> None:
        """Raise UserError for values that are never right, whatever the model."""
        check_mode(self.mode)
        check_init(self.init)
        parse_placement(self.adapt)
        if not 1 <= self.least <= self.mean_rank <= 256:
            raise UserError(
                f"mean_rank={self.mean_rank}, least={self.least}: allowed is 1 <= least <= mean_rank <= 256"
            )
        if self.mode == "eva" and (self.shares or self.by_size):
            raise UserError(
                "mode='eva' deals ranks out over all groups at once: shares and by_size are of the other modes"
            )
        for group, share in self.shares.items():
            if not 0.1 <= share <= 10:
                raise UserError(f"shares: {group}={share:g}, allowed is 0.1 to 10")


class Measured(NamedTuple):
    """What a base model's linears say on some clips; plans of any number follow from it."""

    sides: dict[str, tuple[int, int]]
    """(out_features, in_features) by name."""
    groups: dict[str, str]
    """Group by name."""
    scores: dict[str, Scores]
    halves: tuple[dict[str, Scores], dict[str, Scores]]
    """Scores of each half of the clips alone."""
    spectra: dict[str, list[float]]
    """Eigenvalues of each linear's inputs; empty unless asked for."""
    statistics: list[LinearStatistics]
    """What the scores came from; first weights of adapters follow from it."""
    facts: dict[str, Any]
    """Model, data and clips, for the record."""


def calibrate_ranks(
    base_model: str,
    train: str,
    output: Path,
    plan: Plan,
    *,
    overwrite: bool = False,
    say: Say = print,
    **options: Any,
) -> dict[str, Any]:
    """Write `output` (ranks.json) and pictures beside it; returns the content. options: those of `measure`.

    Raises UserError for bad input before any clip is heard.
    """
    plan.verify()
    if output.exists() and not overwrite:
        raise UserError(f"output={str(output)!r} exists: choose another file, or pass --overwrite")
    measured = measure(base_model, train, plan, with_spectra=plan.mode == "eva", say=say, **options)
    from edgeqlora.lora.pictures import draw_ranks

    output.parent.mkdir(parents=True, exist_ok=True)
    content = write_ranks(measured, plan, output)
    return {**content, "pictures": [str(path) for path in draw_ranks(content, output)]}


def measure(
    base_model: str,
    train: str,
    plan: Plan,
    *,
    n_clips: int = 64,
    method: str = "qlora",
    split: str = "",
    with_spectra: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
    say: Say = print,
    **settings_of_data: Any,
) -> Measured:
    """One pass over n_clips of the training data, drawn by their content.

    settings_of_data: of `train`, such as window_s and language. method: qlora (statistics of the quantised base, and its error) or lora. plan: is refused here where the model cannot
    have it. Raises UserError for bad input before any clip is heard.
    """
    if n_clips < 4:
        raise UserError(f"n_clips={n_clips}: allowed is 4 or more, two for each half (64 or more for ranks to settle)")
    from edgeqlora.lora.adapters import adapted_linears
    from edgeqlora.models.family import check_source, load_learner, load_processor
    from edgeqlora.training.machine.malloc import return_freed_memory
    from edgeqlora.training.training_data import calibration_clips, drawn, fingerprint, prepare

    return_freed_memory()
    given = {"base_model": base_model, "train": train, "split": split, **settings_of_data}
    settings = make_settings({**given, "method": method, "output": "-", "long_clips": "skip"})
    if plan.init == "qera" and settings.base_bits() != 4:
        held = f"bits={bits}" if (bits := settings.bits) else f"method={method!r}"
        raise UserError(f"init='qera' makes up for the error of NF4, and {held} has none: allowed are random, eva")
    check_source(base_model)
    processor = load_processor(base_model)
    data = prepare(settings, processor, Console(stderr=True, highlight=False, soft_wrap=True, markup=False))
    chosen = drawn(data.rows, n_clips)
    if len(chosen) < 4:
        raise UserError(f"{train} has {len(chosen)} clips that can be used: allowed is 4 or more")
    if len(chosen) < n_clips:
        say(f"{len(chosen)} clips are all there are (asked for {n_clips})")
    learner = load_learner(base_model)
    linears, modules = adapted_linears(learner, plan.adapt), dict(learner.model.named_modules())
    groups = {name: group for group, names in linears.items() for name in names}
    sides = {name: (modules[name].out_features, modules[name].in_features) for name in groups}
    layers = layers_of(sides, groups, plan)
    # So that a budget or shares that cannot be are refused now, and not after the pass.
    allocate(
        layers, dict.fromkeys(groups, 1.0), budget_of(layers, plan.mean_rank), _shares_of(layers, plan), plan.least
    )
    errors = _held_as_trained(learner, settings)
    statistics = collect(learner, linears, calibration_clips(learner, data, chosen), len(chosen), errors, progress)
    return Measured(
        sides,
        groups,
        {linear.name: scores_of(linear) for linear in statistics},
        (
            {linear.name: scores_of(linear, 0, 0) for linear in statistics},
            {linear.name: scores_of(linear, 1, 1) for linear in statistics},
        ),
        {linear.name: eigenvalues(linear).tolist() for linear in statistics} if with_spectra else {},
        statistics,
        {
            "base_model": base_model,
            "data": train,
            "split": split or None,
            "method": method,
            "bits": settings.base_bits(),
            "windows_s": data.windows_s,
            "clips": [fingerprint(data.rows[i])[:16] for i in chosen],
            "sources": data.sources,
            "peak_rss_mib": round(measure_peak_rss_mib(), 1),
        },
    )


def write_ranks(measured: Measured, plan: Plan, output: Path) -> dict[str, Any]:
    """Write ranks.json, and beside it the first weights of the adapters where they are not random; returns the content."""
    content = allocate_ranks(measured, plan)
    if plan.init != "random":
        start = output.with_name(f"{output.stem}-start.safetensors")
        save_start(start, plan.init, measured.statistics, content["rank_pattern"], content["alpha_pattern"])
        content["start"] = {"file": start.name, "sha256": sha256_file(start)}
    write_json(output, content)
    return content


def allocate_ranks(measured: Measured, plan: Plan) -> dict[str, Any]:
    """The content of a ranks.json: ranks and alphas by linear, every score, and how they came about."""
    layers = layers_of(measured.sides, measured.groups, plan)
    budget, shares = budget_of(layers, plan.mean_rank), _shares_of(layers, plan)

    def allocated(scores: Mapping[str, Scores]) -> tuple[dict[str, float], dict[str, int]]:
        weights = weights_of(plan.mode, layers, scores)
        return weights, ranks_of(plan.mode, layers, weights, budget, shares, plan.least, measured.spectra, plan.seed)

    weights, ranks = allocated(measured.scores)
    agreement = None
    if plan.mode in SCORED:
        one, two = (allocated(half)[1] for half in measured.halves)
        agreement = spearman([one[name] for name in ranks], [two[name] for name in ranks])
    return {
        "schema": SCHEMA,
        "rank_pattern": ranks,
        "alpha_pattern": {name: round(alpha_of(rank, plan.mean_rank), 6) for name, rank in ranks.items() if rank},
        "plan": dataclasses.asdict(plan),
        "init": plan.init,
        "budget": {"parameters": budget, "spent": sum(layer.cost * ranks[layer.name] for layer in layers)},
        "agreement_of_halves": agreement,
        "scores": {
            name: {
                "group": measured.groups[name],
                **{key: _rounded(value) for key, value in scores._asdict().items()},
                "update_dimension": _rounded(scores.update_dimension),
                "weight": None if plan.mode == "eva" else weights[name],
                "rank": ranks[name],
            }
            for name, scores in measured.scores.items()
        },
        "calibration": measured.facts,
        "machine": read_machine(),
        "versions": library_versions(),
    }


SCORED = tuple(mode for mode in MODES if mode not in ("uniform", "depth-u", "eva", "permuted"))
"""Modes whose ranks follow from scores of each half."""


def alpha_of(rank: int, mean_rank: int) -> float:
    """LoRA alpha so that alpha / rank falls with the square root of the rank, and is SCALING at the mean rank.

    With one alpha for all, a layer that is given more rank would be scaled down by as much (rsLoRA, arXiv 2312.03732).
    """
    return SCALING * math.sqrt(mean_rank * rank)


def layers_of(sides: Mapping[str, tuple[int, int]], groups: Mapping[str, str], plan: Plan) -> list[Layer]:
    """The linears as the allocator sees them. A rank is at most three times the mean, and a quarter of the smaller side."""
    layers = []
    for name, (out_features, in_features) in sides.items():
        cost = out_features + in_features
        if plan.mean_rank > min(out_features, in_features):
            raise UserError(
                f"mean_rank={plan.mean_rank} is more than the smaller side of {name} ({out_features} x {in_features}): "
                f"allowed is at most {min(min(pair) for pair in sides.values())}"
            )
        most = max(plan.mean_rank, min(3 * plan.mean_rank, min(out_features, in_features) // 4))
        layers.append(Layer(name, f"{groups[name]}/{cost}" if plan.by_size else groups[name], cost, most))
    return layers


def _shares_of(layers: Sequence[Layer], plan: Plan) -> dict[str, float]:
    """Shares of the allocator's groups, of which one of the model may be several."""
    known = sorted({layer.group.split("/")[0] for layer in layers})
    for group in plan.shares:
        if group not in known:
            raise UserError(f"shares: {group!r} is no group of this model, allowed are {', '.join(known)}")
    return {layer.group: plan.shares.get(layer.group.split("/")[0], 1.0) for layer in layers}


def _held_as_trained(learner: Any, settings: TrainSettings) -> dict[str, Any]:
    """Put the values that a quantised base holds into the model's linears; returns what was lost, by name."""
    learner.model.requires_grad_(False)
    if (bits := settings.base_bits()) is None:
        return {}
    import torch

    from edgeqlora.lora.adapters import base_dtype
    from edgeqlora.models.quantised import round_trip

    dtype = getattr(torch, base_dtype(settings))
    lost = {}
    for name, module in learner.model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.startswith(learner.unquantised):
            held = round_trip(module.weight, dtype, bits)
            lost[name] = module.weight.detach().clone() - held
            module.weight.copy_(held)
    return lost


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def format_ranks(content: Mapping[str, Any]) -> str:
    """A table of groups for a terminal: linears, parameters, ranks from lowest to highest, entropies."""
    rows = list(content["scores"].values())
    budget, plan = content["budget"], content["plan"]
    lost = f"{NAMES.get(content['calibration'].get('bits'), 'NF4')} error"
    lines = [
        f"mode {plan['mode']}: {MODES[plan['mode']]}",
        f"{budget['spent']:,} trainable parameters of {budget['parameters']:,} (rank {plan['mean_rank']} everywhere)",
        "",
        f"{'group':<10}{'linears':>8}{'ranks':>12}{'mean':>7}{'entropy of inputs, nats':>26}{lost:>12}",
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        ranks = [row["rank"] for row in members]
        entropies = [row["input_entropy"] for row in members]
        errors = [row["nf4_error"] for row in members if row["nf4_error"] is not None]
        error = f"{sum(errors) / len(errors):.3f}" if errors else "--"
        spread = f"{min(ranks)} to {max(ranks)}"
        entropy = f"{min(entropies):.2f} to {max(entropies):.2f}"
        lines.append(f"{group:<10}{len(members):>8}{spread:>12}{sum(ranks) / len(ranks):>7.2f}{entropy:>26}{error:>12}")
    if plan["mode"] != "uniform" and len({row["rank"] for row in rows}) == 1:
        lines += ["", "every linear is at the highest rank that it may have: the mode changes nothing at this budget"]
    if agreement := format_agreement(content):
        lines += ["", agreement]
    return "\n".join(lines)


def format_agreement(content: Mapping[str, Any]) -> str:
    """Whether ranks from the two halves of the clips agree; empty for a mode whose ranks do not follow from clips."""
    agreement = content["agreement_of_halves"]
    if agreement is None:
        return ""
    verdict = "they agree" if agreement >= AGREES else "they do NOT agree: take more clips, or the mode uniform"
    return f"ranks from the two halves of the clips: rank correlation {agreement:.3f}, {verdict}"
