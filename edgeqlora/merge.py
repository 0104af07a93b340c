"""`edgeqlora merge`: adapter into base, in fp32, in the two ways that are sound, and the better one kept."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeqlora.card import Card, dev_data, folder_sha256, measured, missing, write_card
from edgeqlora.data.row import Row
from edgeqlora.data.silence import without_silence
from edgeqlora.data.text import common_language
from edgeqlora.errors import UserError
from edgeqlora_jetson.files import atomic_folder, read_json, sha256_file, verify_replaceable
from edgeqlora_jetson.text import written_language

if TYPE_CHECKING:
    from edgeqlora.lora.loading import Adapter
    from edgeqlora.lora.temporal.merging import MergedGates

CANDIDATES = ("dequantised", "original")
"""dequantised: onto the quantised weights as training saw them; original: onto the base model's own 16/32-bit weights."""

N_PROOF, PROOF_S = 4, 2.0
"""Dev clips, and seconds of each, on which the merged model must answer as the adapter beside its base does."""

MERGE_LIMIT = 5e-4
"""Largest difference allowed of their logits, times the largest magnitude (at least 1), as in export's gates.

Measured with LoRA, DoRA and PiSSA: up to 1.3e-5 (whisper-tiny.en), 4.5e-7 (embedded models); deeper models add up more
rounding. An adapter that was lost, or put on the wrong weights, differs by what it does: 1e-2 and more.
"""


def merge_candidate(
    adapter: Adapter,
    candidate: str,
    folder: Path,
    rows: Sequence[Row] = (),
    say: Any = print,
    gates: MergedGates | None = None,
) -> Any:
    """Write base + adapter, merged in fp32, into `folder`, and return the learner that is loaded from there.

    candidate: one of CANDIDATES. gates: what becomes of the adapter's gates in time, where it has them.
    Never merges inside 4-bit weights: re-quantising would round a small adapter away
    (peft#2321). Raises UserError where the written model answers otherwise than the adapter beside its base: on
    the first N_PROOF of `rows`, or on noise where there are none.
    """
    import torch

    from edgeqlora.lora.loading import load_adapted
    from edgeqlora.models.family import first_line, load_learner

    if candidate not in CANDIDATES:
        raise UserError(f"candidate={candidate!r}: allowed are {', '.join(CANDIDATES)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner = load_adapted(adapter, candidate, device=device, say=say)
    clips = _proof_clips(learner, rows)
    if gates is not None:
        gates.fold(learner)
    apart = _logits(learner, clips)
    if not apart.isfinite().all():
        raise UserError(
            f"{adapter.folder}: with this adapter the model answers NaN or infinity in fp32: its training diverged; take "
            "another checkpoint, or train again with a lower --learning-rate"
        )
    if gates is not None:
        gates.take_out(learner)
    try:
        learner.model = learner.model.merge_and_unload()
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{adapter.folder}: PEFT cannot merge this adapter: {first_line(error)}") from error
    learner.model.save_pretrained(folder)
    learner.processor.save(folder)
    if gates is not None:
        gates.write(folder)
    del learner
    gc.collect()  # PEFT's modules refer to each other: without this two models would be in memory
    merged = load_learner(str(folder), device=device)
    merged.model.eval()
    difference = float((_logits(merged, clips) - apart).abs().max() / apart.abs().max().clamp(min=1))
    if not difference <= MERGE_LIMIT:
        raise UserError(
            f"{adapter.folder}: the merged model ({candidate}) answers otherwise than the adapter beside its base: logits "
            f"differ by {difference:.2g} of their size, allowed is {MERGE_LIMIT:g}. PEFT cannot merge this kind of adapter "
            "soundly; please report it with adapter_config.json"
        )
    return merged


def merge(
    adapter: Path,
    output: Path,
    *,
    dev: str = "",
    dev_split: str = "",
    base_model: str | None = None,
    candidate: str | None = None,
    method: str | None = None,
    normaliser: str = "basic-unicode",
    choose_by: str | None = None,
    skip_silence: bool | None = None,
    limit: int | None = None,
    keep_gates: bool = False,
    overwrite: bool = False,
    say: Any = print,
) -> Card:
    """Merge `adapter` and write a plain transformers folder; returns its card.

    Both candidates are scored on dev and the better one is written, with the figures of both in the card. choose_by:
    wer, cer (then cross-entropy where these are equal), loss, or auto; default: what training was asked to choose by.
    skip_silence: cut silence out of the dev clips first; default: as in training.
    candidate: keep this one whatever the scores. An adapter trained on a 16/32-bit base, and one of plain PEFT (unless method is "qlora"),
    has one candidate, `original`, and one that began with init `qera` has `dequantised`.
    Gates in time are folded into constants by what dev clips hold, or with keep_gates written beside the weights.

    Raises UserError for a folder that is no adapter, an adapter that does not fit its base model (see open_adapter,
    load_adapted), a merge that changes what the adapter does, or dev data that is needed and not there.
    """
    from edgeqlora.data.agreement import spoken_language
    from edgeqlora.evaluation import scores
    from edgeqlora.lora.loading import open_adapter
    from edgeqlora.lora.temporal.merging import check_gates, merged_gates
    from edgeqlora.models.family import load_processor
    from edgeqlora.models.parts import base_record

    scores.check_normaliser(normaliser)
    opened = open_adapter(adapter, base_model, method)
    card, base, quantised = opened.card, opened.base, opened.bits is not None
    if opened.method == "prefix":
        raise UserError(
            f"{adapter}: a prefix is keys and values that the decoder reads, no change of its weights: there is nothing to "
            "merge, and nothing to export. Score it with edgeqlora evaluate; for a board train with qlora, lora or ia3"
        )
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output={str(output)!r} exists: choose another folder, or pass --overwrite")
    if not dev:
        dev, of_training = dev_data(card)
        dev_split = dev_split or of_training
    check_gates(adapter, keep_gates, dev)
    inputs = [adapter, base, dev]
    if output.is_dir():
        verify_replaceable(output, inputs)
    if candidate == "dequantised" and not quantised:
        raise UserError(
            "candidate='dequantised' is for adapters trained on a quantised base, and this one does not say so: allowed is "
            "'original', or --method qlora if you trained it on one"
        )
    wanted = [candidate] if candidate else list(CANDIDATES if quantised else CANDIDATES[1:])
    if _repairs_nf4(adapter):
        if candidate == "original":
            raise UserError(
                "candidate='original': this adapter started from what NF4 took from the base (init qera), so on the original "
                "base that would be added twice; allowed is 'dequantised'"
            )
        wanted = ["dequantised"]
    rows = _dev_rows(dev, dev_split, needed=len(wanted) > 1, limit=limit)
    is_cut = bool(card.get("skip_silence")) if skip_silence is None else skip_silence
    if is_cut and rows:
        rows, silence = without_silence(rows)
        say(str(silence))
    trained = card.get("settings") or {}
    language = written_language(card.get("language"), card.get("task")) or common_language(rows)
    asked = choose_by or trained.get("choose_by", "auto")
    chosen_by = scores.choose_by(asked, [row.text for row in rows], language)

    if output.is_dir():
        verify_replaceable(output, {os.path.dirname(row.audio) for row in rows})
    remark = spoken_language(rows, card.get("language"), load_processor(base).label_rules())[1]
    if remark:
        say(remark)
    results: dict[str, dict[str, Any]] = {}
    of_gates: dict[str, dict[str, Any]] = {}
    scored = partial(_score, rows=rows, card=card, normaliser=normaliser, language=language, say=say)
    best: tuple[float, float] | None = None
    chosen = wanted[0]
    with atomic_folder(output, overwrite=overwrite, inputs=inputs) as folder:
        out = Path(folder)
        for name in wanted:
            gates = merged_gates(adapter, card, keep_gates, rows, scored)
            learner = merge_candidate(opened, name, out / f".{name}", rows, say, gates)
            score = scored(learner) if rows else None
            del learner  # before the next one is loaded
            results[name] = score or dict.fromkeys(scores.CHOICES, missing("no dev data"))
            if score:
                say(f"  {name:<12} dev {scores.format_figures(score, chosen_by)} ({len(rows)} clips)")
            if gates is not None:
                of_gates[name] = gates.field(score, say)
            key = scores.rank(chosen_by, {choice: results[name][choice]["value"] for choice in scores.CHOICES})
            if best is None or key < best:
                best, chosen = key, name
        for path in (out / f".{chosen}").iterdir():
            path.rename(out / path.name)
        for name in wanted:
            shutil.rmtree(out / f".{name}")
        return write_card(
            out,
            "merged",
            method=opened.method,
            base_model=base,
            base_dtype=opened.base_dtype,
            parents={"adapter": folder_sha256(adapter), "base_model": base_record(base)},
            chosen=chosen,
            choose_by=chosen_by,
            candidates=results,
            **({"temporal_gate": of_gates[chosen]} if of_gates else {}),
            n_dev_clips=len(rows),
            dev=dev or None,
            dev_split=dev_split or None,
            windows_s=card.get("windows_s"),
            **({"replay": replay} if (replay := card.get("replay")) else {}),
            tokens_per_s=card.get("tokens_per_s"),
            language=card.get("language"),
            task=card.get("task"),
            skip_silence=is_cut,
            weights={p.name: sha256_file(p) for p in sorted(out.glob("*.safetensors"))},
        )


def _repairs_nf4(adapter: Path) -> bool:
    """Whether the adapter holds a part of what NF4 lost of its base."""
    path = adapter / "ranks.json"
    content = read_json(path, "ranks.json") if path.is_file() else None
    return isinstance(content, dict) and content.get("init") == "qera"


def _dev_rows(source: str, split: str, *, needed: bool, limit: int | None) -> list[Row]:
    if not source:
        if needed:
            raise UserError(
                "two ways of merging are to be compared, and there is no dev data: "
                "pass --dev, or choose with --candidate dequantised"
            )
        return []
    from edgeqlora.data.agreement import read_durations
    from edgeqlora.data.manifest import evenly, load_for

    rows = evenly(load_for("dev", source, split), limit or 0)
    read_durations(rows)
    return rows


def _proof_clips(learner: Any, rows: Sequence[Row]) -> list[Any]:
    """Audio float32 (n_samples,) of at most PROOF_S: the beginnings of the first clips, or noise where there are none."""
    import numpy as np

    from edgeqlora.data.audio import SAMPLE_RATE_HZ, load_audio

    n_samples, rows = round(PROOF_S * SAMPLE_RATE_HZ), [row for row in rows if row.kept != ()]
    if not rows:
        return [np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32) for seed in range(N_PROOF)]
    return [load_audio(row)[:n_samples] for row in rows[:N_PROOF]]


def _logits(learner: Any, clips: Sequence[Any]) -> Any:
    """The model's answers on the clips in one short window: a tensor."""
    import numpy as np
    import torch

    from edgeqlora.models.quantised import plain_model

    window_s = min(PROOF_S, learner.processor.native_window_s)
    features = np.stack([learner.processor.features(clip, window_s) for clip in clips])
    n_valid = [learner.processor.n_valid_frames(clip.size, window_s) for clip in clips]
    inputs = learner.inputs(features, n_valid)
    model = plain_model(learner.model)
    with torch.no_grad(), learner.window(inputs):
        return model(**{name: value.to(model.device) for name, value in inputs.items()}).logits.cpu()


def _score(
    learner: Any, rows: Sequence[Row], card: Card, normaliser: str, language: str | None, say: Any
) -> dict[str, Any]:
    from edgeqlora.evaluation.recognise import Recogniser
    from edgeqlora.evaluation.scores import score_texts

    recogniser = Recogniser(
        learner,
        card.get("windows_s") or [learner.processor.native_window_s],
        card.get("language"),
        card.get("task"),
        card.get("tokens_per_s"),
        say=say,
    )
    result = recogniser.recognise(rows, with_losses=True)
    total, count = result.loss
    found = score_texts([row.text for row in rows], result.texts, [normaliser], learner.processor.spelling, language)
    return {
        "wer": found["wer"][normaliser],
        "cer": found["cer"][normaliser],
        "loss": measured(total / count, "nats per token", n_tokens=count)
        if count
        else missing("no dev clip fits a window whole"),
    }
