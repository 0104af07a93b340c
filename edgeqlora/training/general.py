"""General speech beside the task: what a run forgets of it (canary), and clips of it that keep it from forgetting (replay)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from edgeqlora.data.agreement import read_durations, verify_apart
from edgeqlora.data.batching import choose_windows, window_of
from edgeqlora.data.manifest import evenly, load_for
from edgeqlora.data.row import Row
from edgeqlora.data.silence import without_silence
from edgeqlora.errors import UserError
from edgeqlora.evaluation.recognise import Recogniser
from edgeqlora.models.family import Learner, Processor
from edgeqlora.settings import TrainSettings
from edgeqlora.training.dev_score import DevScore
from edgeqlora_jetson.files import read_json, write_json

Say = Callable[[str], object]


@dataclass
class Replay:
    """Clips of general speech that stand in every optimiser step."""

    rows: list[Row]
    durations_s: list[float]
    windows_s: list[float]
    """Their own: they may be longer than the task's."""
    per_step: int
    """How many of a step's clips."""


def with_replay(settings: TrainSettings) -> TrainSettings:
    """The settings with as many accumulation steps as keep task and replay apart: a batch has one window.

    Raises UserError for a share that no number of steps gives.
    """
    if not settings.replay:
        return settings
    share = Fraction(settings.replay_share).limit_denominator(16)
    pieces = settings.gradient_accumulation
    if (share * pieces).denominator > 1:
        pieces = pieces * share.denominator
    n_replay = share * settings.batch_size
    if not 0 < share < 1 or n_replay.denominator > 1 or settings.batch_size % pieces:
        raise UserError(
            f"replay_share={settings.replay_share:g} of batch_size={settings.batch_size}: allowed is a share that leaves whole "
            "clips, such as 0.5 or 0.25, and a batch that can be cut into as many parts"
        )
    return dataclasses.replace(settings, gradient_accumulation=pieces)


def prepare_replay(settings: TrainSettings, processor: Processor, dev_rows: Sequence[Row], say: Say) -> Replay | None:
    """Rows of `replay` that the model's longest window holds. Raises UserError where none does, or dev has one of them."""
    if not settings.replay:
        return None
    rows = load_for("train", settings.replay, "")
    durations = read_durations(rows)
    if settings.skip_silence:
        rows = [row for row in without_silence(rows)[0] if row.kept != ()]
        durations = read_durations(rows)
    verify_apart(rows, dev_rows)
    windows = own_windows(durations, processor)
    if not rows:
        raise UserError(f"replay={settings.replay!r}: no speech was found in any clip: leave out --skip-silence")
    kept = [(row, d) for row, d in zip(rows, durations, strict=True) if window_of(d, windows) is not None]
    if not kept:
        raise UserError(f"replay={settings.replay!r}: all {len(rows)} clips are longer than {windows[-1]:g} s")
    if len(kept) < len(rows):
        say(f"  replay: {len(rows) - len(kept)} clips longer than {windows[-1]:g} s left out")
    per_step = round(settings.replay_share * settings.batch_size)
    return Replay([row for row, _ in kept], [d for _, d in kept], windows, per_step)


def label_replay(
    replay: Replay,
    learner: Learner,
    settings: TrainSettings,
    language: str | None,
    sources: dict[str, Any],
    cache: Path | None,
    say: Say,
) -> list[list[int]]:
    """Target ids of the replay clips, from their texts; where there is none, from what the base model says of them.

    These are made once and kept in the cache folder. Clips of which the base says nothing are taken out of `replay`.
    sources: hashes of base model and data, a part of the cache's key. learner: the base, without adapters.
    """
    silent = [i for i, row in enumerate(replay.rows) if not row.text.strip()]
    texts = [row.text for row in replay.rows]
    if silent:
        of_data = [sources[name] for name in ("base_model", "replay", "replay_audio")]
        held = f"{settings.method}{settings.bits or ''}"
        heard = [replay.rows[i].kept for i in silent] if settings.skip_silence else []
        key = json.dumps([of_data, held, settings.task, language, silent, replay.windows_s, *heard])
        path = cache / f"replay-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json" if cache is not None else None
        if path is not None and path.is_file():
            said = read_json(path, "transcripts of the base model")
        else:
            say(f"  replay: the base model transcribes {len(silent)} clips that have no text")
            learner.model.eval()
            said = Recogniser(learner, replay.windows_s, language, settings.task).recognise(
                [replay.rows[i] for i in silent]
            ).texts  # fmt: skip
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, said)
        for i, text in zip(silent, said, strict=True):
            texts[i] = text
    limit = learner.processor.label_rules().max_text_tokens or 10**6
    ids = [learner.processor.text_ids(text) if text.strip() else [] for text in texts]
    kept = [i for i, of in enumerate(ids) if of and len(of) <= limit and not learner.processor.unwritable(texts[i])]
    if not kept:
        raise UserError(f"replay={settings.replay!r}: no clip has a text that the model can write")
    if len(kept) < len(ids):
        say(
            f"  replay: {len(ids) - len(kept)} clips left out: the base model says nothing, or the text cannot be a label"
        )
    replay.rows = [replay.rows[i] for i in kept]
    replay.durations_s = [replay.durations_s[i] for i in kept]
    return [[*ids[i], *learner.processor.end_ids] for i in kept]


class Canary:
    """Scores general speech: before the first step, and then with each evaluation of dev."""

    def __init__(self, settings: TrainSettings, rows: Sequence[Row], learner: Learner, language: str | None):
        windows = own_windows(read_durations(rows), learner.processor)
        scored = evenly(list(rows), settings.eval_samples)
        recogniser = Recogniser(learner, windows, language, settings.task)
        self._score = DevScore(recogniser, rows, scored, settings)
        self.source, self.windows_s, self.n_clips = settings.canary, windows, len(scored)
        self.limit = settings.max_canary_increase
        self.rate = "cer" if self._score.no_words else "wer"
        self.before: dict[str, float] | None = None

    def measure_before(self, path: Path, *, resumed: bool, is_first: bool) -> None:
        """Figures of the model as it is now, kept in a file, from which a resumed run reads them. All processes call it."""
        if resumed and path.is_file():
            self.before = read_json(path, "figures of the canary")
            return
        self.before = self._figures()
        if is_first:
            write_json(path, self.before)

    def __call__(self) -> tuple[dict[str, float], float]:
        """(figures named eval_canary_*, points by which its error rate is above what it was)."""
        assert self.before is not None, "measure_before comes first"
        figures = self._figures()
        return figures, figures[f"eval_canary_{self.rate}"] - self.before[f"eval_canary_{self.rate}"]

    def card_field(self, log_history: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
        """What the card says: figures before training and of the checkpoint that was kept, and whether it is inside the limit."""
        after = next((row for row in log_history if row["step"] == step and "eval_canary_loss" in row), {})
        name = f"eval_canary_{self.rate}"
        increase = after[name] - (self.before or {})[name] if name in after else None
        return {
            "source": self.source,
            "n_clips": self.n_clips,
            "windows_s": self.windows_s,
            "before": self.before,
            "after": {key: value for key, value in after.items() if key.startswith("eval_canary_")} or None,
            "increase": None if increase is None else round(increase, 4),
            "limit": self.limit,
            "is_inside": None if self.limit is None or increase is None else increase <= self.limit,
        }

    def _figures(self) -> dict[str, float]:
        found = self._score()
        names = ("eval_wer", "eval_cer", "eval_loss")
        return {name.replace("eval_", "eval_canary_"): found[name] for name in names if name in found}


def load_canary(settings: TrainSettings) -> list[Row]:
    """Rows of the canary; none without one. Raises UserError where the settings do not go together."""
    if not settings.canary:
        if settings.max_canary_increase is not None:
            raise UserError(f"max_canary_increase={settings.max_canary_increase:g} is of a canary: pass --canary")
        return []
    if not settings.dev:
        raise UserError("--canary is scored whenever dev is: pass --dev")
    rows = load_for("", settings.canary, "")
    return without_silence(rows)[0] if settings.skip_silence else rows


def own_windows(durations_s: Sequence[float], processor: Processor) -> list[float]:
    """Windows for clips of these durations, whatever the task's are."""
    native_s = processor.native_window_s
    return sorted({min(w, native_s) for w in choose_windows([min(d, native_s) for d in durations_s], None)})
