"""`train --tune N`: N runs that look for settings which do better on the dev set, by optuna."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gc
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeqlora.errors import UserError
from edgeqlora.settings import TrainSettings, write_settings
from edgeqlora_jetson.files import write_json, write_text

if TYPE_CHECKING:
    import optuna

Say = Callable[[str], object]

RANKS = (4, 8, 16, 32)
SPEEDS = [0.9, 1.0, 1.1]
PICTURES = ("optimization_history", "param_importances", "slice", "parallel_coordinate")
"""Of optuna.visualization.matplotlib."""


def tune_folder(output: str) -> Path:
    """Where a search keeps its database, pictures and best settings."""
    return Path(f"{output.rstrip('/')}.tune")


def tune(settings: TrainSettings, n_trials: int, say: Say = print) -> dict[str, Any]:
    """Search until the study of this output has n_trials finished trials; returns what was found.

    The first trial is the settings as they are, so that the search can say whether it beats them. A trial that is
    worse than half of the others at the same step is stopped (median pruning). The same command goes on with a search
    that was stopped; several at once share it. Writes best.toml, trials.jsonl and pictures into OUTPUT.tune.

    Raises UserError without dev data, and where the folder's search began with other settings.
    """
    if not settings.dev:
        raise UserError("--tune compares trials on dev data: pass --dev")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--tune under torchrun: each process would search for itself; start the command several times instead"
        )
    if n_trials < 2:
        raise UserError(f"tune={n_trials}: allowed is 2 or more; the first trial is the settings as they are")
    import optuna
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are called so since 2020
    folder, space = tune_folder(settings.output), search_space(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        study = _open_study(settings, folder, space)
    finished = (TrialState.COMPLETE, TrialState.PRUNED)
    study.optimize(
        lambda trial: _try(settings, space, trial, say),
        callbacks=[MaxTrialsCallback(n_trials, states=finished)],
        n_trials=max(0, n_trials - len(study.get_trials(deepcopy=False, states=finished))),
        catch=(),
    )
    with _alone_in(folder):
        return _conclude(settings, study, space, folder, say)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Inside the `with`, other processes of the same search wait at theirs: optuna makes its tables without a lock."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_study(settings: TrainSettings, folder: Path, space: Space) -> optuna.Study:
    import optuna
    from optuna.trial import TrialState

    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder / 'study.db'}",
        heartbeat_interval=30,
        grace_period=120,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1),
    )
    study = optuna.create_study(
        study_name="train",
        storage=storage,
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )
    given = json.loads(json.dumps({k: v for k, v in vars(settings).items() if k not in ("output", "workers")}))
    if study.user_attrs.setdefault("settings", given) != given and study.user_attrs["settings"] != given:
        changed = [name for name in given if study.user_attrs["settings"].get(name) != given[name]]
        raise UserError(
            f"{folder} holds a search that began with another {changed[0]}: give the same settings, or another --output"
        )
    study.set_user_attr("settings", given)
    alive = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE))
    if not any(trial.user_attrs.get("as_given") for trial in alive):
        study.enqueue_trial(space.defaults, user_attrs={"as_given": True})
    # A search by one process is always the same; one beside it, or a later one, must not draw the same again.
    starts = study.user_attrs.get("starts", len(study.trials) - 1)  # older searches did not count them
    study.set_user_attr("starts", starts + 1)
    study.sampler = optuna.samplers.TPESampler(seed=(settings.seed + 7919 * starts) % 2**32)
    return study


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched, by the settings that the user gave."""

    defaults: dict[str, Any]
    """Parameters of the settings as they are."""
    tunes_ranks: bool
    takes_spec_augment: bool
    tunes_noise: bool
    rates: tuple[float, float]

    def settings(self, base: TrainSettings, params: dict[str, Any]) -> dict[str, Any]:
        """Changes to `base` that these parameters stand for."""
        changes: dict[str, Any] = {name: params[name] for name in ("learning_rate", "warmup_ratio") if name in params}
        for name in ("lora_dropout", "spec_augment", "noise_probability"):
            if name in params:
                changes[name] = params[name]
        if "rank" in params:
            changes["ranks"] = f"uniform:{params['rank']}"
            changes["lora_alpha"] = float(params["alpha_per_rank"] * params["rank"])
        if "speed_perturb" in params:
            changes["speed_perturb"] = (base.speed_perturb or list(SPEEDS)) if params["speed_perturb"] else []
        return changes

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Parameters of one trial."""
        params: dict[str, Any] = {
            "learning_rate": trial.suggest_float("learning_rate", *self.rates, log=True),
            "warmup_ratio": trial.suggest_float("warmup_ratio", 0.0, 0.2),
            "speed_perturb": trial.suggest_categorical("speed_perturb", [False, True]),
        }
        if self.tunes_ranks:
            params["rank"] = trial.suggest_categorical("rank", list(RANKS))
            params["alpha_per_rank"] = trial.suggest_categorical("alpha_per_rank", [1, 2, 4])
        if "lora_dropout" in self.defaults:
            params["lora_dropout"] = trial.suggest_float("lora_dropout", 0.0, 0.2)
        if self.takes_spec_augment:
            params["spec_augment"] = trial.suggest_categorical("spec_augment", [False, True])
        if self.tunes_noise:
            params["noise_probability"] = trial.suggest_float("noise_probability", 0.0, 0.9)
        return params


def search_space(settings: TrainSettings) -> Space:
    """Learning rate, warm-up and augmentation for every method; rank budget, alpha and dropout where there are adapters.

    Ranks of a file, and speeds of one's own, are kept as they are. Noise is searched where a folder of it is given.
    """
    from edgeqlora.models.family import load_processor

    is_lora = settings.method in ("qlora", "lora")
    rates = (1e-6, 1e-3) if settings.method == "full" else (1e-4, 2e-2) if is_lora else (1e-3, 3e-1)
    takes_spec_augment = len(load_processor(settings.base_model).feature_shape(1.0)) > 1
    rank = settings.ranks.removeprefix("uniform:") if settings.ranks.startswith("uniform:") else ""
    tunes_ranks = is_lora and rank.isdigit() and int(rank) in RANKS
    defaults: dict[str, Any] = {
        "learning_rate": min(max(settings.resolved_learning_rate(), rates[0]), rates[1]),
        "warmup_ratio": min(settings.warmup_ratio, 0.2),
        "speed_perturb": bool(settings.speed_perturb),
    }
    if tunes_ranks:
        alpha = (settings.lora_alpha or 2.0 * int(rank)) / int(rank)
        defaults |= {"rank": int(rank), "alpha_per_rank": min((1, 2, 4), key=lambda known: abs(known - alpha))}
    if is_lora:
        defaults["lora_dropout"] = min(settings.lora_dropout, 0.2)
    if takes_spec_augment:
        defaults["spec_augment"] = settings.spec_augment
    if settings.noise:
        defaults["noise_probability"] = min(settings.noise_probability, 0.9)
    return Space(defaults, tunes_ranks, takes_spec_augment, bool(settings.noise), rates)


def _try(settings: TrainSettings, space: Space, trial: optuna.Trial, say: Say) -> float:
    """One run; its value is the best figure that its checkpoints had on dev."""
    import optuna

    from edgeqlora.train import train

    params = space.suggest(trial)
    as_given = bool(trial.user_attrs.get("as_given"))
    changes = {} if as_given else space.settings(settings, params)
    best = math.inf
    figures: dict[str, float] = {}

    def watch(step: int, metrics: dict[str, float]) -> None:
        nonlocal best, figures
        if metrics["eval_rank"] < best:
            best, figures = metrics["eval_rank"], {k: v for k, v in metrics.items() if k != "eval_seconds"}
        trial.report(best, len(trial.storage.get_trial(trial._trial_id).intermediate_values))
        if not as_given and trial.should_prune():
            raise optuna.TrialPruned

    with tempfile.TemporaryDirectory(prefix="trial-", dir=tune_folder(settings.output)) as scratch:
        one = dataclasses.replace(settings, **changes, output=f"{scratch}/adapter")
        try:
            trial.set_user_attr("choose_by", train(one, watch=watch, quiet=True)["choose_by"])
        finally:
            trial.set_user_attr("figures", figures)
            gc.collect()
    say(f"trial {trial.number}: {_figure(figures)}  {_shown(changes)}")
    return best


def _conclude(settings: TrainSettings, study: optuna.Study, space: Space, folder: Path, say: Say) -> dict[str, Any]:
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not done:
        raise UserError(f"no trial of {folder} was finished: see its trials.jsonl")
    best = min(done, key=lambda trial: (trial.value, trial.number))
    first = next((trial for trial in done if trial.user_attrs.get("as_given")), None)
    changes = {} if best is first else space.settings(settings, best.params)
    write_settings(dataclasses.replace(settings, **changes), folder / "best.toml")
    lines = (
        json.dumps(
            {"number": t.number, "state": t.state.name.lower(), "value": t.value, "params": t.params, **t.user_attrs}
        )
        for t in trials
    )
    write_text(folder / "trials.jsonl", "".join(f"{line}\n" for line in lines))
    chosen_by = best.user_attrs.get("choose_by", "figure")  # older trials do not say
    target = "dev loss, nats a token" if chosen_by == "loss" else f"dev {chosen_by.upper()}, %"
    pictures = _draw(study, folder, target) if len(done) > 2 else []
    found = {
        "schema": "edgeqlora.tune/1",
        "best": {"number": best.number, "figures": best.user_attrs["figures"], "changes": changes},
        "given": first.user_attrs["figures"] if first is not None else None,
        "n_finished": len(done),
        "n_pruned": sum(trial.state == TrialState.PRUNED for trial in trials),
        "pictures": [str(path) for path in pictures],
    }
    write_json(folder / "tune.json", found)
    if first is not None:
        ahead = (
            "beats the settings as they were"
            if best is not first
            else "nothing was better than the settings as they were"
        )
        say(f"{ahead}: dev {_figure(best.user_attrs['figures'])}, as they were {_figure(first.user_attrs['figures'])}")
    say(
        "The best of many trials looks better on this dev set than it is: score it on other clips before you believe it"
    )
    return found


def _draw(study: optuna.Study, folder: Path, target: str) -> list[Path]:
    """Optuna's own pictures, 800 px wide; target: what was searched for, with its unit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter
    from optuna.visualization import matplotlib as pictures

    paths = []
    for name in PICTURES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # optuna calls its matplotlib pictures experimental
            try:
                drawn = getattr(pictures, f"plot_{name}")(study, target_name=target)
            except (RuntimeError, ValueError, ImportError):
                continue  # importances need trials that differ, and scikit-learn
            figure = (drawn.flat[0] if hasattr(drawn, "flat") else drawn).figure
            for axis in figure.axes:
                axis.xaxis.set_minor_formatter(NullFormatter())  # on a narrow logarithmic axis labels hide each other
            figure.set_size_inches(8, 4.5)
            if name == "slice" and hasattr(drawn, "flat"):
                _in_two_rows(figure, list(drawn.flat))
            figure.savefig(folder / f"{name}.png", dpi=100, bbox_inches="tight")
            pyplot.close(figure)
        paths.append(folder / f"{name}.png")
    return paths


def _in_two_rows(figure: Any, panels: list[Any]) -> None:
    """Optuna puts the panels of all settings into one row, where 800 px do not show them."""
    n_columns = -(-len(panels) // 2)
    grid = figure.add_gridspec(2, n_columns, right=0.86, hspace=0.45, wspace=0.15)
    for number, panel in enumerate(panels):
        row, column = divmod(number, n_columns)
        panel.set_subplotspec(grid[row, column])
        panel.tick_params(labelsize=8, labelleft=column == 0)
        panel.set_ylabel(panels[0].get_ylabel() if column == 0 else "")
        panel.set_xlabel(panel.get_xlabel(), fontsize=9)
    for bar in figure.axes:
        if bar not in panels:
            bar.set_position((0.89, 0.11, 0.02, 0.77))
    figure.set_size_inches(8, 6)


def _figure(figures: dict[str, float]) -> str:
    from edgeqlora.training.run_log import loss_text

    rate = "wer" if "eval_wer" in figures else "cer"
    if f"eval_{rate}" not in figures:
        return "--"
    return f"{rate.upper()} {figures[f'eval_{rate}']:.2f} %, loss {loss_text(figures, 4)}"


def _shown(changes: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in changes.items() if v or v == 0)
