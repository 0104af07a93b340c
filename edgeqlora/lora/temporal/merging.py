"""What becomes of gates in time when an adapter is merged: folded into constants, or kept beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeqlora.card import Card
from edgeqlora.data.audio import SAMPLE_RATE_HZ, load_audio
from edgeqlora.data.manifest import evenly
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError
from edgeqlora.lora.temporal.fold import fold
from edgeqlora.lora.temporal.gates import gates_of, remove_gates
from edgeqlora.models.clips import as_clip
from edgeqlora.models.family import Learner
from edgeqlora_export.gates import RECORD, SCHEMA, SavedGates, write_gates
from edgeqlora_jetson.audio.windows import choose_window
from edgeqlora_jetson.files import read_json

N_CLIPS = 64
"""Dev clips whose frames decide the constants."""
ALLOWED = 0.1
"""Points by which the error rate on dev may rise before --keep-gates is advised."""

Score = Callable[[Learner], dict[str, Any]]


def check_gates(adapter: Path, keep: bool, dev: str) -> None:
    """Raise UserError for gates that are to be kept and are not there, or folded without dev data. adapter: its folder."""
    has_gates = (adapter / RECORD).is_file()
    if keep and not has_gates:
        raise UserError(
            f"--keep-gates, and {adapter} has no gates in time: leave it out; it is for adapters that were trained "
            "with --temporal-gate"
        )
    if has_gates and not keep and not dev:
        raise UserError(
            f"{adapter} has gates in time, which are folded into constants by what clips hold, and there is no dev "
            "data: pass --dev, or --keep-gates"
        )


def merged_gates(adapter: Path, card: Card, keep: bool, rows: Sequence[Row], score: Score) -> MergedGates | None:
    """For one merge of the adapter in a folder; None of an adapter without gates."""
    if not (adapter / RECORD).is_file():
        return None
    kind = read_json(adapter / RECORD, "record of gates")["kind"]
    return MergedGates(kind, card, keep, rows, score)


class MergedGates:
    """The gates of one adapter on their way into a merged folder: fold, take_out and write, in this order."""

    def __init__(self, kind: str, card: Card, keep: bool, rows: Sequence[Row], score: Score):
        self._kind, self._card, self._keep, self._rows, self._score = kind, card, keep, rows, score
        self._before: dict[str, Any] = {}
        self._folded: dict[str, Any] = {}
        self._saved = SavedGates(kind, {})

    def fold(self, learner: Learner) -> None:
        """Replace gates by constants, unless they are kept, and measure what that changes."""
        if not self._keep:
            self._before = self._score(learner)
            clips = fold_clips(learner, evenly(list(self._rows), N_CLIPS), self._card)
            self._folded = fold(learner, gates_of(learner.model), clips)
            remove_gates(learner.model)

    def take_out(self, learner: Learner) -> None:
        """Take gated adapters out of the model, so that PEFT merges only the others."""
        import torch

        for name, (adapter, gate) in gates_of(learner.model).items():
            a, b = (getattr(adapter, part)["default"].weight for part in ("lora_A", "lora_B"))
            own = {**dict(gate.named_parameters()), "lora_A": a.detach()}
            self._saved.linears[name] = {**own, "lora_B": b.detach() * adapter.scaling["default"]}
            with torch.no_grad():
                b.zero_()
        remove_gates(learner.model)

    def write(self, folder: Path) -> None:
        """Write what was taken out beside the merged weights in `folder`."""
        if self._saved.linears:
            one = (folder / "model.safetensors").is_file()
            write_gates(folder, self._saved, beside="model.safetensors" if one else "model.safetensors.index.json")

    def field(self, after: dict[str, Any] | None, say: Callable[[str], object]) -> dict[str, Any]:
        """What the card says of them, which is also said; after: figures of the merged model on dev."""
        known: dict[str, Any] = {"schema": SCHEMA, "kind": self._kind, "kept": self._keep}
        if self._keep:
            say(f"  {len(self._saved.linears)} adapters with gates in time stay beside the weights")
            return known
        assert after is not None, "check_gates asks for dev data"
        layers = self._folded["layers"]
        errors = {name: layer["error"] for name, layer in layers.items()}
        worst = max(errors, key=lambda name: errors[name])
        say(
            f"  {len(errors)} gates in time folded into constants: what an adapter adds is off by "
            f"{100 * sum(errors.values()) / len(errors):.1f} % on average, at most {100 * errors[worst]:.1f} % ({worst})"
        )
        rate = "wer" if self._before["wer"]["value"] is not None else "cer"
        figures = [found[rate]["value"] for found in (self._before, after)]
        logits = self._folded["logit_rms"] / max(self._folded["logit_size_rms"], 1e-12)
        say(
            f"    answers change by {100 * logits:.2f} % (RMS of the logits), {100 * self._folded['top1_agreement']:.2f} % of "
            "the likeliest stay"
        )
        rise = None if None in figures else round(figures[1] - figures[0], 4)
        if rise is not None:
            say(f"    dev {rate.upper()} {figures[0]:.2f} % with gates, {figures[1]:.2f} % folded")
        if rise is not None and rise > ALLOWED:
            say(
                f"    Folding costs {rise:.2f} points of {rate.upper()} on dev, more than {ALLOWED:g}: merge with --keep-gates, "
                "and export puts the gates into the graph"
            )
        dev = {"with_gates": self._before, "folded": after, "rate": rate, "rise": rise}
        return {**known, "fold": {**self._folded, "dev": dev}}


def fold_clips(learner: Learner, rows: Sequence[Row], card: Card) -> list[dict[str, Any]]:
    """Clips as models.clips.as_clip gives them; what does not fit into the largest window is cut off."""
    processor = learner.processor
    windows_s = sorted(card.get("windows_s") or [processor.native_window_s])
    decoder = learner.decoder(windows_s, card.get("language"), card.get("task"), card.get("tokens_per_s"))
    limit = processor.label_rules().max_text_tokens
    found = []
    for row in rows:
        audio = load_audio(row)
        window_s = choose_window(audio.size, windows_s, SAMPLE_RATE_HZ)
        ids = [*processor.text_ids(row.text)[:limit], *processor.end_ids]
        found.append(as_clip(processor, decoder, row.name, audio, window_s, ids))
    return found
