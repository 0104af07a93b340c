"""Figures of dev data while a model is trained: what is logged, and what the best checkpoint is chosen by."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

from edgeqlora.card import measured, missing
from edgeqlora.data.audio import probe
from edgeqlora.data.batching import window_of
from edgeqlora.data.row import Row
from edgeqlora.data.text import common_language
from edgeqlora.errors import UserError
from edgeqlora.evaluation import scores
from edgeqlora.evaluation.recognise import Recogniser, Recognition
from edgeqlora.settings import TrainSettings
from edgeqlora_jetson.errors import NotFiniteError
from edgeqlora_jetson.text import why_no_words, written_language
from edgeqlora_jetson.wer import error_figures

MOST_LOSS, FORGETS, WORST = 50.0, 1e5, 1e9
"""Nats per token at which a loss is cut off beside an error rate, far above any that learns; rank of a model that forgets
more than it may; rank of a diverged one."""


def verify_choice(settings: TrainSettings, dev_rows: Sequence[Row], windows_s: Sequence[float]) -> None:
    """Before weights are loaded: UserError for choose_by=wer where dev is written without spaces between words, and for
    choose_by=loss where no dev clip fits a window."""
    if settings.choose_by == "loss" and dev_rows and not any(window_of(probe(row)[1], windows_s) for row in dev_rows):
        raise UserError(
            f"choose_by='loss', and none of {len(dev_rows)} dev clips fits the window of {windows_s[-1]:g} s, so none has a "
            "loss: allowed are wer and cer, or pass --window-s with a longer window"
        )
    language = written_language(settings.language, settings.task) or common_language(dev_rows)
    scores.choose_by(settings.choose_by, [row.text for row in dev_rows], language)


class Canary(Protocol):
    """See training/general.py."""

    limit: float | None

    def __call__(self) -> tuple[dict[str, float], float]: ...


class DevScore:
    """Scores a recogniser's model, as it is at the time of the call, on dev clips.

    dev_rows: all of them, which decide whether words are counted. rows: those that are scored at each call.
    """

    canary: Canary | None = None
    """General speech that is scored with it, and may forbid a checkpoint."""

    def __init__(self, recogniser: Recogniser, dev_rows: Sequence[Row], rows: Sequence[Row], settings: TrainSettings):
        self.recogniser, self.rows, self.normaliser = recogniser, rows, settings.scored_by()
        language, texts = recogniser.written_language or common_language(dev_rows), [row.text for row in dev_rows]
        self.no_words = why_no_words(texts, language)
        self.chosen_by = scores.choose_by(settings.choose_by, texts, language)
        self._apply = scores.normaliser(self.normaliser, recogniser.learner.processor.spelling, language)

    def __call__(self) -> dict[str, float]:
        """Figures named eval_*, of which eval_rank is the one to choose by, the lowest first.

        Each process scores its share of the clips, and all return the figures of the whole. eval_wer is left out where
        the texts have no words to count.
        """
        from accelerate import PartialState
        from accelerate.utils import gather_object

        start_s, process = time.perf_counter(), PartialState()
        mine = self.rows[process.process_index :: process.num_processes]
        try:
            result = self.recogniser.recognise(mine, with_losses=True)
        except NotFiniteError:
            # Diverged: it says nothing, all words are wrong, and an earlier checkpoint stays the best.
            result = Recognition([""] * len(mine), losses=[(math.nan, 1)] * len(mine))
        apply = self._apply
        pairs = gather_object([(apply(row.text), apply(text)) for row, text in zip(mine, result.texts, strict=True)])
        totals, counts = zip(*gather_object([result.loss]), strict=True)
        has_loss = sum(counts) > 0  # no loss is defined for a clip longer than the window
        loss = sum(totals) / max(sum(counts), 1)
        rates = {
            name: 100.0 if figure["value"] is None else figure["value"]
            for name, figure in error_figures(pairs, self.no_words).items()
            if name != "wer" or not self.no_words
        }
        figures = {
            # An error rate, and where it ties (often at 0) the loss. A word of a million moves the rate by 1e-4 %, more
            # than the loss can add. A diverged model says nothing, and so makes fewer errors than one that begins to learn.
            "eval_rank": {**rates, "loss": loss}[self.chosen_by] + 1e-6 * min(loss, MOST_LOSS)
            if math.isfinite(loss)
            else WORST,
            **{f"eval_{name}": round(rate, 4) for name, rate in rates.items()},
            **({"eval_loss": loss} if has_loss else {}),
            "eval_clips": len(pairs),
            "eval_incomplete": sum(gather_object([result.n_incomplete])),
        }
        if self.canary is not None:
            general, increase = self.canary()
            figures |= general
            if self.canary.limit is not None and increase > self.canary.limit:
                # Behind every checkpoint that is inside the limit; where none is, the least increase counts.
                figures["eval_rank"] = max(figures["eval_rank"], min(WORST / 2, FORGETS * (1 + increase)))
        return {**figures, "eval_seconds": round(time.perf_counter() - start_s, 3)}

    def card_fields(self, log_history: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
        """What the card says of dev: the figures at `step`, each null with its reason where there is none."""
        found = next((row for row in log_history if row["step"] == step and "eval_cer" in row), {})
        reasons = {"loss": "no dev clip fits a window whole"} if found else {}
        reasons |= {"wer": self.no_words} if self.no_words else {}
        how = {"normaliser": self.normaliser, "n_clips": len(self.rows)}
        fields: dict[str, Any] = {"choose_by": self.chosen_by if found else None}
        for name, unit in (("wer", "%"), ("cer", "%"), ("loss", "nats per token")):
            value = found.get(f"eval_{name}")
            fields[f"dev_{name}"] = (
                missing(reasons.get(name, "this step was not scored"), **how)
                if value is None
                else measured(value, unit, **(how if unit == "%" else {"n_clips": len(self.rows)}))
            )
        return fields


def no_dev() -> dict[str, Any]:
    """What the card says of dev where none was given."""
    reason = missing("no dev data was given")
    return {"choose_by": None, "dev_wer": reason, "dev_cer": reason, "dev_loss": reason}
