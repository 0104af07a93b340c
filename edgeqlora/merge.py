"""`edgeqlora merge`: adapter into base, in fp32, in the two ways that are sound, and the better one kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeqlora.card import Card, dev_data, folder_sha256, measured, missing, read_card, verify_parent, write_card
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError
from edgeqlora_jetson.files import atomic_folder, sha256_file

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
    # 4-bit values are those of training: quantised on the GPU where there is one, from weights of the same type.
    stored = getattr(torch, (read_card(adapter) or {}).get("computed_with", {}).get("base_dtype", "float32"))
    learner = load_learner(base_model, device="cuda" if torch.cuda.is_available() else "cpu")
    if candidate == "dequantised":
        with torch.no_grad():
            for name, module in learner.model.named_modules():
                if isinstance(module, torch.nn.Linear) and not name.startswith(learner.unquantised):
                    module.weight.copy_(nf4_round_trip(module.weight.to(stored).float()))
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
    normaliser: str = "basic",
    limit: int | None = None,
    overwrite: bool = False,
    say: Any = print,
) -> Card:
    """Merge `adapter` and write a plain transformers folder; returns its card.

    Both candidates are scored on dev (greedy WER, then cross-entropy where the WERs are equal) and the better one is
    written, with both figures in the card. candidate: keep this one whatever the scores. An adapter trained on a
    16/32-bit base has one candidate, `original`.

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
    from edgeqlora.models.family import check_source, load_processor

    check_source(base)
    verify_parent(base, card)
    quantised = card.get("method", "qlora") == "qlora"
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output={str(output)!r} exists: choose another folder, or pass --overwrite")
    if candidate == "dequantised" and not quantised:
        raise UserError(
            "candidate='dequantised' is for adapters trained on a 4-bit base; this one was not: allowed is 'original'"
        )
    wanted = [candidate] if candidate else list(CANDIDATES if quantised else CANDIDATES[1:])
    if not dev:
        dev, of_training = dev_data(card)
        dev_split = dev_split or of_training
    rows = _dev_rows(dev, dev_split, needed=len(wanted) > 1, limit=limit)

    load_processor(base)
    results: dict[str, dict[str, Any]] = {}
    best: tuple[tuple[float, float], str, Any] | None = None
    for name in wanted:
        learner = merge_candidate(base, adapter, name)
        score = _score(learner, rows, card, normaliser, say) if rows else None
        results[name] = score or {"wer": missing("no dev data"), "loss": missing("no dev data")}
        wer, loss = (results[name][figure]["value"] for figure in ("wer", "loss"))
        if score:
            shown = "--" if wer is None else f"{wer:.2f} %"
            say(f"  {name:<12} dev WER {shown}, loss {'--' if loss is None else f'{loss:.4f}'} ({len(rows)} clips)")
        # A figure that is not available (a diverged model has no finite loss) counts as the worst.
        key = (math.inf if wer is None else wer, math.inf if loss is None else loss)
        if best is None or key < best[0]:
            best = (key, name, learner)
    assert best is not None
    _, chosen, learner = best
    with atomic_folder(output, overwrite=overwrite) as folder:
        out = Path(folder)
        learner.model.save_pretrained(out)
        learner.processor.save(out)
        return write_card(
            out,
            "merged",
            base_model=base,
            parents={"adapter": folder_sha256(adapter), "base_model": (card.get("parents") or {}).get("base_model")},
            chosen=chosen,
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


def _score(learner: Any, rows: Sequence[Row], card: Card, normaliser: str, say: Any) -> dict[str, Any]:
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
    texts = recogniser.recognise(rows).texts
    total, count = recogniser.cross_entropy(rows)
    wer = score_texts([row.text for row in rows], texts, [normaliser], learner.processor.spelling)["wer"][normaliser]
    return {"wer": wer, "loss": measured(total / max(count, 1), "nats per token", n_tokens=count)}
