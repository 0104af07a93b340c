"""`edgeqlora merge`: adapter into base, in fp32, in the two ways that are sound, and the better one kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeqlora.card import Card, dev_data, folder_sha256, measured, missing, read_card, verify_parent, write_card
from edgeqlora.data.row import Row
from edgeqlora.data.text import common_language
from edgeqlora.errors import UserError
from edgeqlora_jetson.files import atomic_folder, sha256_file, verify_replaceable
from edgeqlora_jetson.text import written_language

CANDIDATES = ("dequantised", "original")
"""dequantised: onto the NF4 weights as training saw them; original: onto the base model's own 16/32-bit weights."""


def nf4_round_trip(weight: Any) -> Any:
    """The fp32 values that an NF4 weight with double quantisation stands for, shape (out_features, in_features).

    Quantising and dequantising a second time gives the same values, so this is exactly what training computed with.
    """
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(weight.float().contiguous(), quant_type="nf4", compress_statistics=True)
    return bnb.dequantize_4bit(packed, state).to(weight.dtype)


def merge_candidate(base_model: str, adapter: Path, candidate: str) -> Any:
    """Learner of base + adapter in fp32; candidate is one of CANDIDATES.

    Never merges inside 4-bit weights: re-quantising would round a small adapter away (peft#2321).
    """
    import torch
    from peft import PeftModel

    from edgeqlora.models.family import load_learner

    if candidate not in CANDIDATES:
        raise UserError(f"candidate={candidate!r}: allowed are {', '.join(CANDIDATES)}")
    learner = load_learner(base_model)
    if candidate == "dequantised":
        with torch.no_grad():
            for name, module in learner.model.named_modules():
                if isinstance(module, torch.nn.Linear) and not name.startswith(learner.unquantised):
                    module.weight.copy_(nf4_round_trip(module.weight))
    learner.model = PeftModel.from_pretrained(learner.model, str(adapter)).merge_and_unload()
    learner.model.eval()
    return learner


def merge(
    adapter: Path,
    output: Path,
    *,
    dev: str = "",
    dev_split: str = "",
    base_model: str | None = None,
    candidate: str | None = None,
    normaliser: str = "basic-unicode",
    choose_by: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    say: Any = print,
) -> Card:
    """Merge `adapter` and write a plain transformers folder; returns its card.

    Both candidates are scored on dev and the better one is written, with the figures of both in the card. choose_by:
    wer, cer (then cross-entropy where these are equal), loss, or auto; default: what training was asked to choose by.
    candidate: keep this one whatever the scores. An adapter trained on a 16/32-bit base has one candidate, `original`.

    Raises UserError for a folder that is no adapter, a missing base model, or dev data that is needed and not there.
    """
    if not (adapter / "adapter_config.json").is_file():
        hint = (
            " (it is a whole model: nothing to merge, export it as it is)" if (adapter / "config.json").exists() else ""
        )
        raise UserError(f"{adapter} is not an adapter folder: no adapter_config.json in it{hint}")
    card = read_card(adapter) or {}
    base = base_model or card.get("base_model")
    if not base:
        raise UserError(f"{adapter} does not say which base model it belongs to: pass --base-model")
    from edgeqlora.evaluation import scores
    from edgeqlora.models.family import check_source, load_processor

    scores.check_normaliser(normaliser)
    check_source(base)
    verify_parent(base, card)
    quantised = card.get("method", "qlora") == "qlora"
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output={str(output)!r} exists: choose another folder, or pass --overwrite")
    if not dev:
        dev, of_training = dev_data(card)
        dev_split = dev_split or of_training
    inputs = [adapter, base, dev]
    if output.is_dir():
        verify_replaceable(output, inputs)
    if candidate == "dequantised" and not quantised:
        raise UserError(
            "candidate='dequantised' is for adapters trained on a 4-bit base; this one was not: allowed is 'original'"
        )
    wanted = [candidate] if candidate else list(CANDIDATES if quantised else CANDIDATES[1:])
    rows = _dev_rows(dev, dev_split, needed=len(wanted) > 1, limit=limit)
    trained = card.get("settings") or {}
    language = written_language(card.get("language"), card.get("task")) or common_language(rows)
    asked = choose_by or trained.get("choose_by", "auto")
    chosen_by = scores.choose_by(asked, [row.text for row in rows], language)

    if output.is_dir():
        verify_replaceable(output, {os.path.dirname(row.audio) for row in rows})
    load_processor(base)
    results: dict[str, dict[str, Any]] = {}
    best: tuple[tuple[float, float], str, Any] | None = None
    for name in wanted:
        learner = merge_candidate(base, adapter, name)
        score = _score(learner, rows, card, normaliser, language) if rows else None
        results[name] = score or dict.fromkeys(scores.CHOICES, missing("no dev data"))
        if score:
            say(f"  {name:<12} dev {scores.format_figures(score, chosen_by)} ({len(rows)} clips)")
        key = scores.rank(chosen_by, {choice: results[name][choice]["value"] for choice in scores.CHOICES})
        if best is None or key < best[0]:
            best = (key, name, learner)
    assert best is not None
    _, chosen, learner = best
    with atomic_folder(output, overwrite=overwrite, inputs=inputs) as folder:
        out = Path(folder)
        learner.model.save_pretrained(out)
        learner.processor.save(out)
        return write_card(
            out,
            "merged",
            base_model=base,
            parents={"adapter": folder_sha256(adapter), "base_model": (card.get("parents") or {}).get("base_model")},
            chosen=chosen,
            choose_by=chosen_by,
            candidates=results,
            n_dev_clips=len(rows),
            dev=dev or None,
            dev_split=dev_split or None,
            windows_s=card.get("windows_s"),
            tokens_per_s=card.get("tokens_per_s"),
            language=card.get("language"),
            task=card.get("task"),
            weights={p.name: sha256_file(p) for p in sorted(out.glob("*.safetensors"))},
        )


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


def _score(learner: Any, rows: Sequence[Row], card: Card, normaliser: str, language: str | None) -> dict[str, Any]:
    from edgeqlora.evaluation.recognise import Recogniser
    from edgeqlora.evaluation.scores import score_texts

    recogniser = Recogniser(
        learner,
        card.get("windows_s") or [learner.processor.native_window_s],
        card.get("language"),
        card.get("task"),
        card.get("tokens_per_s"),
    )
    texts = recogniser.recognise(rows).texts
    total, count = recogniser.cross_entropy(rows)
    found = score_texts([row.text for row in rows], texts, [normaliser], learner.processor.spelling, language)
    return {
        "wer": found["wer"][normaliser],
        "cer": found["cer"][normaliser],
        "loss": measured(total / max(count, 1), "nats per token", n_tokens=count),
    }
