"""A study: arms that differ in what is asked about and in nothing else, written before the first run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgeqlora.errors import UserError
from edgeqlora.research.ranks import Plan
from edgeqlora.settings import TrainSettings, in_folder, make_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMON = ("base_model", "train", "dev", "test")
"""Data and model, the same for every arm; relative paths mean the study's own folder."""
OWN = ("name", "plan")
"""Keys of an arm that are no settings of training."""
PER_RUN = ("output", "seed", "learning_rate", "dev", "train", "base_model", "resume")
"""Settings of training that the study gives to each run itself."""


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    settings: dict[str, Any]
    """Settings of training that all arms have, with this arm's own."""
    plan: Plan | None
    """How its ranks follow from measurements; None: `ranks` of its settings."""


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

    @property
    def rate_runs(self) -> list[Run]:
        """One run for each arm and learning rate; none where there is one rate."""
        if len(self.learning_rates) == 1:
            return []
        return [Run(arm.name, self.tune_seed, rate, "rate") for rate in self.learning_rates for arm in self.arms]

    def final_runs(self, rates: Mapping[str, float]) -> Iterator[Run]:
        """Seed after seed all arms, so that an unfinished study compares the same seeds."""
        for seed in self.seeds:
            for arm in self.arms:
                if arm.name in rates:
                    yield Run(arm.name, seed, rates[arm.name], "final")

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def fingerprint(self) -> str:
        """Of everything that decides a run; arms and seeds may be added to a study that has begun."""
        shared = {name: getattr(self, name) for name in (*COMMON, "learning_rates", "tune_seed", "clips")}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


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
    known = {*COMMON, "seeds", "learning_rates", "tune_seed", "reference", "primary", "margin_loss", "margin_wer"}
    known |= {"clips", "settings", "arm"}
    if unknown := sorted(set(given) - known):
        raise UserError(f"{path}: unknown key {unknown[0]!r}, allowed are {', '.join(sorted(known))}")
    for name in COMMON:
        if not isinstance(given.get(name), str) or not given[name]:
            raise UserError(f"{path}: {name} is not given: a folder or a manifest")
    home = path.resolve().parent
    common = {name: in_folder("train" if name == "test" else name, given[name], home) for name in COMMON}
    shared = _table(path, "settings", given.get("settings", {}))
    arms = tuple(_read_arm(path, common, shared, one) for one in _list(path, "arm", given.get("arm")))
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names) or len(names) < 2:
        raise UserError(f"{path}: {len(names)} arms named {', '.join(names)}: give at least two, with different names")
    seeds = tuple(_numbers(path, "seeds", given.get("seeds", [1, 2, 3]), int))
    rates = tuple(_numbers(path, "learning_rates", given.get("learning_rates", [1e-3]), float))
    tune_seed = given.get("tune_seed", 0)
    if tune_seed in seeds:
        raise UserError(
            f"{path}: tune_seed={tune_seed} is one of the seeds: the rates would be chosen on what is compared"
        )
    reference = given.get("reference", names[0])
    primary = tuple(given.get("primary", []))
    for name in (reference, *primary):
        if name not in names:
            raise UserError(f"{path}: {name!r} is no arm, allowed are {', '.join(names)}")
    return Study(
        **common,
        arms=arms,
        seeds=seeds,
        learning_rates=rates,
        tune_seed=tune_seed,
        reference=reference,
        primary=primary,
        margin_loss=_number(path, "margin_loss", given.get("margin_loss", 0.01)),
        margin_wer=_number(path, "margin_wer", given.get("margin_wer", 0.5)),
        clips=int(_number(path, "clips", given.get("clips", 64))),
    )


def settings_of(study: Study, run: Run, ranks: str | None, output: Path) -> TrainSettings:
    """Settings of one run. No dev data: the last checkpoint is what each arm is judged by."""
    given = {**study.arm(run.arm).settings, "base_model": study.base_model, "train": study.train}
    given |= {"output": str(output), "seed": run.seed, "learning_rate": run.learning_rate}
    return make_settings({**given, "ranks": ranks} if ranks else given)


def _read_arm(path: Path, common: Mapping[str, str], shared: Mapping[str, Any], given: Any) -> Arm:
    given = _table(path, "arm", given)
    name = given.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}", name):
        raise UserError(f"{path}: an arm is named {name!r}: letters, digits and . _ + -, at most 40")
    own = {**shared, **{key: value for key, value in given.items() if key not in OWN}}
    settings = {key: in_folder(key, value, path.resolve().parent) for key, value in own.items()}
    if fixed := sorted(set(settings) & set(PER_RUN)):
        raise UserError(f"{path}: arm {name}: {', '.join(fixed)}: given by the study itself, take it out")
    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    if unknown := sorted(set(settings) - fields):
        raise UserError(f"{path}: arm {name}: {unknown[0]!r} is no setting of train")
    plan = None
    if "plan" in given:
        of_plan = _table(path, f"plan of arm {name}", given["plan"])
        if unknown := sorted(set(of_plan) - {field.name for field in dataclasses.fields(Plan)}):
            raise UserError(f"{path}: arm {name}: {unknown[0]!r} is nothing that a plan has")
        plan = Plan(**of_plan)
        try:
            plan.verify()
        except (UserError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: arm {name}: {error}") from None
        if "ranks" in given:
            raise UserError(f"{path}: arm {name} has a plan and ranks: give one of them")
    try:
        make_settings({**settings, "base_model": common["base_model"], "train": common["train"], "output": "-"})
    except UserError as error:
        raise UserError(f"{path}: arm {name}: {error}") from None
    return Arm(name, settings, plan)


def _table(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} is {value!r:.60}, wanted is a table")
    return value


def _list(path: Path, name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{path}: there is no [[{name}]]")
    return value


def _numbers(path: Path, name: str, values: Any, kind: type) -> list[Any]:
    if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
        raise UserError(f"{path}: {name}={values!r:.60}, wanted is a list of different numbers")
    return [kind(_number(path, name, value)) for value in values]


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
        raise UserError(f"{path}: {name}={value!r:.60}, wanted is a number from 0")
    return value
