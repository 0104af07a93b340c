"""A study: arms that differ in what is asked about and in nothing else, written before the first run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic

from edgeqlora.errors import UserError
from edgeqlora.models.placement import parse_placement
from edgeqlora.research.ranks import Plan
from edgeqlora.settings import TrainSettings, in_folder, make_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMON = ("base_model", "train", "dev", "test")
"""Data and model, the same for every arm; relative paths mean the study's own folder."""
OWN = ("name", "plan", "rate_of", "learning_rates")
"""Keys of an arm that are no settings of training."""
PER_RUN = ("output", "seed", "learning_rate", "dev", "train", "base_model", "resume", "canary", "max_canary_increase")
"""Settings of training that the study gives to each run itself."""


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    settings: dict[str, Any]
    """Settings of training that all arms have, with this arm's own."""
    plan: Plan | None
    """How its ranks follow from measurements; None: `ranks` of its settings."""
    rate_of: str | None = None
    """Name of the arm whose learning rate it takes; None: it gets its own."""
    learning_rates: tuple[float, ...] = ()
    """To choose from, as many as the other arms have; empty: those of the study."""


class Comparison(NamedTuple):
    """An arm against the mean of others, beside that with the reference: such as ear against three permutations."""

    arm: str
    against: tuple[str, ...]


class Run(NamedTuple):
    """One training run with its evaluation."""

    arm: str
    seed: int
    learning_rate: float
    stage: str
    """rate: to choose the learning rate on dev; final: a row of the table."""

    @property
    def key(self) -> str:
        """Name of its row."""
        return f"{self.stage}-{self.arm}-{self.seed}-{self.learning_rate:g}"


@dataclass(frozen=True)
class Study:
    """What a TOML file asks for."""

    base_model: str
    train: str
    dev: str
    test: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    tune_seed: int
    reference: str
    """Name of the arm that the others are held against."""
    primary: tuple[str, ...]
    """Names of the arms whose comparison was asked about beforehand: Holm's correction is over these."""
    margin_loss: float
    """Difference of cross-entropy, nats a token, within which an arm is not worse."""
    margin_wer: float
    """The same for WER, in points."""
    clips: int
    """Clips that ranks are measured on."""
    compare: tuple[Comparison, ...] = ()
    canary: str = ""
    """General speech on which final runs are scored too, in its own windows; empty: none."""

    @property
    def rate_runs(self) -> list[Run]:
        """One run for each arm and learning rate; none where there is one rate."""
        if len(self.learning_rates) == 1:
            return []
        tuned = [arm for arm in self.arms if arm.rate_of is None]
        return [
            Run(arm.name, self.tune_seed, self.rates_of(arm)[i], "rate")
            for i in range(len(self.learning_rates))
            for arm in tuned
        ]

    def rates_of(self, arm: Arm) -> tuple[float, ...]:
        """Learning rates that an arm chooses from."""
        lender = self.arm(arm.rate_of) if arm.rate_of else arm
        return lender.learning_rates or self.learning_rates

    def final_runs(self, rates: Mapping[str, float]) -> Iterator[Run]:
        """Seed after seed all arms, so that an unfinished study compares the same seeds."""
        for seed in self.seeds:
            for arm in self.arms:
                if arm.name in rates:
                    yield Run(arm.name, seed, rates[arm.name], "final")

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def fingerprint(self) -> str:
        """Of what all runs share; arms, seeds and learning rates may be added to a study that has begun."""
        shared = {name: getattr(self, name) for name in ("tune_seed", "clips")}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


class _Compare(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    arm: str
    against: list[str] = pydantic.Field(min_length=1)


class _File(pydantic.BaseModel):
    """The TOML file of a study: types and ranges."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    base_model: str = pydantic.Field(min_length=1)
    train: str = pydantic.Field(min_length=1)
    dev: str = pydantic.Field(min_length=1)
    test: str = pydantic.Field(min_length=1)
    canary: str = ""
    seeds: list[Annotated[int, pydantic.Field(ge=0, lt=2**32)]] = pydantic.Field([1, 2, 3], min_length=1)
    learning_rates: list[Annotated[float, pydantic.Field(gt=0, le=1)]] = pydantic.Field([1e-3], min_length=1)
    tune_seed: int = pydantic.Field(0, ge=0, lt=2**32)
    reference: str | None = None
    primary: list[str] = []
    margin_loss: float = pydantic.Field(0.01, gt=0, le=10)
    margin_wer: float = pydantic.Field(0.5, gt=0, le=100)
    clips: int = pydantic.Field(64, ge=4, le=10**6)
    compare: list[_Compare] = []
    settings: dict[str, Any] = {}
    arm: list[dict[str, Any]] = pydantic.Field(min_length=2)


def read_study(path: Path) -> Study:
    """Read and check a study; the settings of every arm are checked as those of `train` are.

    Raises UserError naming the arm, the value and what is allowed.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no study {path}: see docs/ranks.md for one to start from") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    try:
        file = _File(**given)
    except pydantic.ValidationError as error:
        raise UserError(f"{path}: {_told(error)}") from None
    home = path.resolve().parent
    common = {name: in_folder("train" if name == "test" else name, getattr(file, name), home) for name in COMMON}
    canary = in_folder("canary", file.canary, home)
    arms = tuple(_read_arm(path, common, {**file.settings, **arm}, len(file.learning_rates)) for arm in file.arm)
    names = [arm.name for arm in arms]
    for what, values in (("arms", names), ("seeds", file.seeds), ("learning_rates", file.learning_rates)):
        if len(set(values)) < len(values):
            raise UserError(f"{path}: {what} {', '.join(map(str, values))}: one is there twice")
    if file.tune_seed in file.seeds:
        raise UserError(
            f"{path}: tune_seed={file.tune_seed} is one of the seeds: the rates would be chosen on what is compared"
        )
    reference = file.reference or names[0]
    lent = {arm.rate_of for arm in arms} - {None}
    if any(arm.rate_of and arm.name in lent for arm in arms):
        raise UserError(f"{path}: an arm lends its learning rate and takes that of another: it can do one of them")
    compared = [name for one in file.compare for name in (one.arm, *one.against)]
    for name in (reference, *file.primary, *sorted(filter(None, lent)), *compared):
        if name not in names:
            raise UserError(f"{path}: {name!r} is no arm, allowed are {', '.join(names)}")
    return Study(
        **common,
        arms=arms,
        seeds=tuple(file.seeds),
        learning_rates=tuple(file.learning_rates),
        tune_seed=file.tune_seed,
        reference=reference,
        primary=tuple(file.primary),
        margin_loss=file.margin_loss,
        margin_wer=file.margin_wer,
        clips=file.clips,
        canary=canary,
        compare=tuple(Comparison(one.arm, tuple(one.against)) for one in file.compare),
    )


def _told(error: pydantic.ValidationError) -> str:
    """The first thing that pydantic found, with its place and the value."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}={first['input']!r:.60}: {first['msg'][0].lower()}{first['msg'][1:]}"


def settings_of(study: Study, run: Run, ranks: str | None, output: Path) -> TrainSettings:
    """Settings of one run. No dev data: the last checkpoint is what each arm is judged by."""
    given = {**study.arm(run.arm).settings, "base_model": study.base_model, "train": study.train}
    given |= {"output": str(output), "seed": run.seed, "learning_rate": run.learning_rate}
    return make_settings({**given, "ranks": ranks} if ranks else given)


def _read_arm(path: Path, common: Mapping[str, str], given: Mapping[str, Any], n_rates: int) -> Arm:
    name = given.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}", name):
        raise UserError(f"{path}: an arm is named {name!r:.60}: letters, digits and . _ + -, at most 40")
    try:
        own = {key: value for key, value in given.items() if key not in OWN}
        settings = {key: in_folder(key, value, path.resolve().parent) for key, value in own.items()}
        if fixed := sorted(set(settings) & set(PER_RUN)):
            raise UserError(f"{', '.join(fixed)}: given by the study itself, take it out")
        if unknown := sorted(set(settings) - {field.name for field in dataclasses.fields(TrainSettings)}):
            raise UserError(f"{unknown[0]!r} is no setting of train")
        plan = _read_plan(given["plan"]) if "plan" in given else None
        if plan is not None and "ranks" in own:
            raise UserError("a plan and ranks: give one of them")
        if plan is not None and settings.get("drop_layers"):
            raise UserError("a plan and drop_layers: ranks are measured on the whole model, so give one of them")
        if plan is not None and "adapt" in settings:
            raise UserError("a plan and adapt: put adapt into the plan, whose ranks are of the linears that it names")
        if plan is not None and settings.get("method", "qlora") not in ("qlora", "lora"):
            raise UserError(f"a plan and method={settings['method']!r}: ranks are of LoRA, so of qlora and lora")
        if plan is not None and plan.init == "qera" and (settings.get("method") == "lora" or settings.get("bits") == 8):
            raise UserError("init='qera' makes up for the error of NF4: allowed is method='qlora' with 4 bits")
        parse_placement(str(settings.get("adapt", "all")))
        make_settings({**settings, "base_model": common["base_model"], "train": common["train"], "output": "-"})
    except UserError as error:
        raise UserError(f"{path}: arm {name}: {error}") from None
    rates, rate_of = given.get("learning_rates", []), given.get("rate_of")
    are_rates = isinstance(rates, list) and all(isinstance(rate, float) and 0 < rate <= 1 for rate in rates)
    if not are_rates or (rates and not len(rates) == len(set(rates)) == n_rates):
        raise UserError(
            f"{path}: arm {name}: learning_rates={rates!r:.60}, allowed are as many as the study has ({n_rates}), all different, "
            "each above 0.0 and at most 1.0: an arm with more to choose from would have an advantage"
        )
    if rates and rate_of:
        raise UserError(
            f"{path}: arm {name}: learning_rates={rates!r:.60} and rate_of={rate_of!r:.60}: give one of them"
        )
    if rate_of is not None and not isinstance(rate_of, str):
        raise UserError(f"{path}: arm {name}: rate_of={rate_of!r:.60}, allowed is the name of an arm")
    return Arm(name, settings, plan, rate_of, tuple(rates))


def _read_plan(given: Any) -> Plan:
    fields = [field.name for field in dataclasses.fields(Plan)]
    if not isinstance(given, dict) or (set(given) - set(fields)):
        raise UserError(f"plan={given!r:.80}, allowed is a table of {', '.join(fields)}")
    try:
        plan = pydantic.TypeAdapter(Plan).validate_json(json.dumps(given, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise UserError(f"plan: {_told(error)}") from None
    plan.verify()
    return plan


def chosen_rates(study: Study, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The learning rate of each arm with the lowest cross-entropy on dev; arms whose runs are not all there are left out."""
    if len(study.learning_rates) == 1:
        return {arm.name: study.rates_of(arm)[0] for arm in study.arms}
    found = {}
    for arm in study.arms:
        of_arm = {row["learning_rate"]: row for row in rows if row["arm"] == arm.name and row["stage"] == "rate"}
        rates = study.rates_of(arm)
        if all(rate in of_arm for rate in rates):
            found[arm.name] = min(rates, key=lambda rate: (mean_loss(of_arm[rate].get("dev")), rate))
    return found | {arm.name: found[arm.rate_of] for arm in study.arms if arm.rate_of in found}


def mean_loss(utterances: Sequence[Mapping[str, Any]] | None) -> float:
    """Nats a token; infinite for None: the run diverged."""
    if utterances is None:
        return float("inf")
    total: float = sum(u["loss"] for u in utterances) / max(1, sum(u["tokens"] for u in utterances))
    return total
