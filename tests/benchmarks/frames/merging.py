"""Merging of encoder frames on whisper-tiny.en and real speech in ../shared, beside controls that merge as many frames.

Arms are kappa alone (the rule of edgeqlora/models/frames.py, with the encoder timed in turns), and for some kappas the
same clips with as many speech frames of each clip merged, chosen otherwise; their padding is merged by the rule:

    random    any
    cosine    most alike hidden states
    novelty   least |W (x - m)|^2 / |W m|^2: the rule's measure without what NF4 does
    ratio     least |W (x - m)|^2 / |E m|^2: the rule's own measure, the best first

Writes a line an arm to rows.jsonl beside this file, and goes on where it was stopped.

    python tests/benchmarks/frames/merging.py
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeqlora.data.audio import load_audio
from edgeqlora.data.manifest import load_for
from edgeqlora.evaluation import frames
from edgeqlora.evaluation.frames import recognise_merged
from edgeqlora.evaluation.recognise import Recogniser
from edgeqlora.evaluation.scores import normaliser, score_texts
from edgeqlora.models.family import load_learner
from edgeqlora.models.frames import LONGEST_RUN, Counts, FrameMerger, count, novelty_and_noise
from edgeqlora_jetson.wer import align_counts, items

SHARED = Path(__file__).resolve().parents[4] / "shared"
ROWS = Path(__file__).with_name("rows.jsonl")
SETS = ("librispeech-sample/test.jsonl", "misc-sentences/manifest.jsonl")
CLIPS_OF_EACH = 32
BATCH_SIZE = 4
ARMS = [("off", 0.0)]
ARMS += [(arm, kappa) for kappa in (24.0, 36.0) for arm in ("rule", "random", "cosine")]
ARMS += [("rule", kappa) for kappa in (4.0, 2.0, 1.0, 0.5, 8.0, 16.0)]
ARMS += [(arm, kappa) for kappa in (24.0, 36.0) for arm in ("novelty", "ratio")]
KAPPAS = (0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 36.0, 50.0)
NORMALISER = "whisper-english"


class Control(FrameMerger):
    """Merges as many speech frames of each clip as the rule does, the highest score of two neighbours first."""

    def __init__(self, learner: Any, kappa: float, score: str):
        super().__init__(learner, kappa)
        self.score, self.generator = score, np.random.default_rng(0)

    def starts(self, hidden: Any, n_frames: Any) -> Any:
        starts = super().starts(hidden, n_frames)
        scores = self.scores(hidden)
        for row, n in enumerate(n_frames):
            starts[row, :n] = joined_best(scores[row, :n], int((~starts[row, :n]).sum()))
        return starts

    def scores(self, hidden: Any) -> Any:
        """Of each frame and the one before it, shape (batch, n_frames); the first has none that counts."""
        if self.score == "random":
            return self.generator.random(hidden.shape[:2])
        if self.score == "cosine":
            alike = torch.nn.functional.cosine_similarity(hidden[:, 1:], hidden[:, :-1], dim=-1)
            return torch.nn.functional.pad(alike, (1, 0)).numpy()
        x = self._norm(hidden).float()
        novelty, noise = novelty_and_noise(x, self.w_form, self.e_form)
        if self.score == "novelty":
            signal = ((x @ self.w_form) * x).sum(-1)
            return -(novelty[..., 0] / torch.nn.functional.pad(signal[:, :-1], (1, 0), value=1.0)).numpy()
        return -(novelty[..., 0] / noise[..., 0]).numpy()


def joined_best(scores: Any, n_merged: int) -> Any:
    """Which frames begin a run where n_merged of them join the one before, best scores first, runs of at most LONGEST_RUN."""
    starts = np.ones(len(scores), bool)
    for t in sorted(range(1, len(scores)), key=lambda t: -scores[t]):
        if n_merged == 0:
            break
        first, end = t - 1, t + 1
        while not starts[first]:
            first -= 1
        while end < len(scores) and not starts[end]:
            end += 1
        if end - first <= LONGEST_RUN:
            starts[t], n_merged = False, n_merged - 1
    return starts


class Seen(Exception):
    """The frames were looked at: the rest of the encoder need not run."""


class Shares(FrameMerger):
    """Counts what each of KAPPAS would merge, and ends the forward pass."""

    def __init__(self, learner: Any):
        super().__init__(learner, 1.0)
        self.found = {kappa: Counts() for kappa in KAPPAS}

    def starts(self, hidden: Any, n_frames: Any) -> Any:
        for self.kappa in KAPPAS:
            self.found[self.kappa] += count(super().starts(hidden, n_frames), n_frames)
        raise Seen


def shares(learner: Any, rows: Any, window_s: float) -> list[dict[str, Any]]:
    """A row for each of KAPPAS: shares of speech and padding frames that would be merged, in %."""
    merger, processor = Shares(learner), learner.processor
    with torch.no_grad(), merger.merging():
        for row in rows:
            audio = load_audio(row)
            merger.n_valid = [processor.n_valid_frames(audio.size, window_s)]
            with contextlib.suppress(Seen):
                merger.encoder(torch.from_numpy(processor.features(audio, window_s))[None])
    found = merger.found.items()
    speech = [round(100 * counts.speech_merged / counts.speech, 3) for _, counts in found]
    padding = [round(100 * counts.padding_merged / counts.padding, 3) for _, counts in found]
    return [
        {"arm": "shares", "kappa": k, "speech": s, "padding": p}
        for k, s, p in zip(KAPPAS, speech, padding, strict=True)
    ]


def errors_of(rows: Any, texts: Any, spelling: Any) -> list[int]:
    """Word errors of each clip."""
    apply = normaliser(NORMALISER, spelling, "en")
    found = []
    for row, text in zip(rows, texts, strict=True):
        found.append(sum(align_counts(items(apply(row.text), "word"), items(apply(text), "word"))[:3]))
    return found


def main() -> None:
    torch.set_num_threads(1)
    frames.MOST_TIMED = 6
    rows = [row for name in SETS for row in load_for("", str(SHARED / "data" / name), "", CLIPS_OF_EACH)]
    references = [row.text for row in rows]
    learner = load_learner(str(SHARED / "models" / "whisper-tiny.en"))
    learner.model.eval()
    recogniser = Recogniser(learner, [learner.processor.native_window_s])
    done = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    seen = {(row["arm"], row["kappa"]) for row in done}
    if ("shares", KAPPAS[0]) not in seen:
        found = shares(learner, rows, recogniser.windows_s[0])
        with ROWS.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    for arm, kappa in ARMS:
        if (arm, kappa) in seen:
            continue
        figures: dict[str, Any] = {}
        if arm == "off":
            result = recogniser.recognise(rows, BATCH_SIZE, with_losses=True)
        else:
            merger = FrameMerger(learner, kappa) if arm == "rule" else Control(learner, kappa, arm)
            result, report = recognise_merged(recogniser, merger, rows, BATCH_SIZE, is_timed=arm == "rule")
            figures = {name: report[name]["value"] for name in report if isinstance(report[name], dict)}
        scores = score_texts(references, result.texts, [NORMALISER], learner.processor.spelling, "en")
        row = {
            "arm": arm,
            "kappa": kappa,
            "wer": scores["wer"][NORMALISER]["value"],
            "n_words": scores["wer"][NORMALISER]["n_reference"],
            "loss": round(result.loss[0] / result.loss[1], 5),
            **figures,
            "errors": errors_of(rows, result.texts, learner.processor.spelling),
        }
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({name: value for name, value in row.items() if name != "errors"}, flush=True)


if __name__ == "__main__":
    main()
