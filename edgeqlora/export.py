"""`edgeqlora export`: the hardware profile in plain values, real clips, and the export room put together."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeqlora.card import dev_data, folder_sha256, read_card, tuned_windows
from edgeqlora.errors import UserError
from edgeqlora.hub_access import hub_snapshot, is_hub_name
from edgeqlora.settings import parse_windows
from edgeqlora_jetson.audio.windows import untuned_windows
from edgeqlora_jetson.files import check_output_folder
from edgeqlora_jetson.screen import command_line

if TYPE_CHECKING:
    from edgeqlora.data.row import Row
    from edgeqlora.profiles.load import Profile


def export(
    merged: str,
    output: Path,
    *,
    target: str = "cpu",
    jetpack: str | None = None,
    window_s: str | None = None,
    data: str = "",
    split: str = "",
    n_eval: int = 32,
    language: str | None = None,
    task: str | None = None,
    name: str | None = None,
    with_silence: bool = False,
    margin_s: str = "auto",
    precision: str = "auto",
    max_wer_increase: float = 0.5,
    compile_check: bool = False,
    also: Sequence[str] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Export `merged`, a folder or hub name, for the board of profile `target`, prove it on clips of `data`, write the bundle.

    jetpack: one of the board's releases, whose TensorRT, Python and opset are taken; default: the profile's own.
    data: default is the dev data that the adapter was trained with. Windows: default is what training used, else the model's own.
    Values of the profile that no public document confirms are said where they are used, and recorded.
    margin_s: seconds of silence after a clip that the encoder hears of its window: auto (the least that costs no accuracy on
    the clips), a number (taken if it costs none), or off (whole windows).
    precision: of the graphs: auto (int8 on a CPU, fp16 on a board with TensorRT, as far as it costs at most max_wer_increase points of the
    error rate on the clips), int8 (on a CPU all of it, or an error; on a board as far as allowed), fp16, bf16, or fp32.
    also: formats of ALSO, each written beside the bundle as OUTPUT-NAME and heard by its runtime.
    with_silence: that a model trained on audio without silence hears it on the board, which cuts none, is known.
    Returns the export room's summary. Raises UserError before any weights are loaded where input is bad.
    """
    from edgeqlora.data.agreement import spoken_language
    from edgeqlora.data.audio import load_audio
    from edgeqlora.data.manifest import evenly, load_for
    from edgeqlora.models.family import check_source, load_processor
    from edgeqlora.models.parts import verify_weights
    from edgeqlora.profiles.load import load_profile

    profile, margins_s = load_profile(target, jetpack), parse_margin(margin_s)
    if (Path(merged) / "adapter_config.json").is_file():
        if (read_card(Path(merged)) or {}).get("method") == "prefix":
            raise UserError(
                f"{merged} is a prefix: keys and values that the decoder reads, no change of its weights, and no graph takes "
                "them; for a board train with qlora, lora or ia3"
            )
        kept = "; --keep-gates keeps its gates in time" if any(Path(merged).glob("temporal_gate.*")) else ""
        raise UserError(
            f"{merged} is an adapter: merge it first (edgeqlora merge {command_line(merged)} -o merged){kept}"
        )
    for_cpu = profile.kind == "cpu" and not profile.tensorrt
    possible = profile.precisions if profile.tensorrt else ("int8", "fp32") if for_cpu else ("fp32",)
    offered = ["auto", *(name for name in PRECISIONS if name in possible)]
    if not for_cpu and "fp16" not in possible:
        offered = ["auto", "fp32"]  # int8 and bf16 are made beside fp16
    if precision not in offered:
        raise UserError(f"precision={precision!r}: for {profile.name} allowed are {', '.join(offered)}")
    if also and precision == "bf16":
        raise UserError(
            f"also={', '.join(also)}: its texts are compared with those of the bundle, which needs TensorRT in bf16: leave it away, or pass "
            "--precision fp16"
        )
    if compile_check and for_cpu:
        raise UserError(
            f"--compile-check compiles graphs for TensorRT, and those of {profile.name} are for onnxruntime on a CPU: leave it away, or "
            "pass --target with a board"
        )
    if not 0 <= max_wer_increase <= 100:
        raise UserError(
            f"max_wer_increase={max_wer_increase:g}: allowed are 0 to 100 points of the error rate, such as 0.5"
        )
    check_source(merged, is_base=False)
    folder = _folder_of(merged)
    card = read_card(folder) or {}
    if card.get("skip_silence") and not with_silence:
        raise UserError(
            f"{merged} was trained with skip_silence, and the runner on the board cuts no silence: WER there may differ from the "
            "card's, and longer clips need longer windows. Pass --with-silence to export all the same (evaluate the bundle "
            "then), or train without skip_silence"
        )
    verify_weights(folder, card)
    processor = load_processor(str(folder))  # parts that do not belong together are found before the weights are read
    windows_s = (parse_windows(window_s) if window_s else None) or card.get("windows_s") or [processor.native_window_s]
    if untuned := untuned_windows(windows_s, tuned_windows(card)):
        say(f"  {untuned}: evaluate the bundle on clips of those lengths")
    if max(windows_s) > profile.max_window_s:
        raise UserError(
            f"window_s={max(windows_s):g} is more than {profile.name} is asked for: at most {profile.max_window_s:g} s"
        )
    role = "" if data else "dev"
    if not data:
        data, of_training = dev_data(card)
        split = split or of_training
    if not data or not (data.startswith("hf:") or Path(data).exists()):
        raise UserError(
            "export proves the graphs on real clips, and there are none"
            f"{f' ({data} is not here)' if data else ''}: pass --data with a manifest or folder"
        )
    check_output_folder(output, overwrite, [merged, data, target])
    for kind in also:
        if kind not in ALSO:
            raise UserError(f"also={kind!r}: allowed are {', '.join(ALSO)}")
        check_output_folder(output.with_name(f"{output.name}-{kind}"), overwrite, [merged, data, target])
    every = load_for(role, data, split)
    rows = evenly(every, max(n_eval, N_PARITY))
    check_output_folder(output, overwrite, {os.path.dirname(row.audio) for row in rows})
    told, remark = spoken_language(rows, language or card.get("language"), processor.label_rules())
    if remark:
        say(remark)
    clips = [(load_audio(row), row.text) for row in rows]
    shipped, spoken = rows[:n_eval], {"language": told, "task": task or card.get("task")}
    is_searched = margins_s != [] or precision != "fp32"
    tried = clips_of_margin(every, shipped, spoken) if is_searched else []

    plain = _plain_profile(profile, precision, say)
    from edgeqlora_export.margin import LEAST_WORDS, MARGINS_S
    from edgeqlora_export.precision import PrecisionSettings
    from edgeqlora_export.run import export_bundle

    return export_bundle(
        folder,
        output,
        opset=profile.opset,
        windows_s=windows_s,
        profile=plain,
        clips=clips,
        n_eval=n_eval,
        language=told,
        task=task or card.get("task"),
        tokens_per_s=card.get("tokens_per_s"),
        name=name or (merged.rpartition("/")[2] if is_hub_name(merged) else None),
        cut_in_training=bool(card.get("skip_silence")),
        tuned_windows_s=tuned_windows(card),
        base_model=card.get("base_model") or (merged if is_hub_name(merged) else None),
        parents={"merged": folder_sha256(folder), "adapter": (card.get("parents") or {}).get("adapter")},
        n_parity=N_PARITY,
        margins_s=MARGINS_S if margins_s is None else margins_s,
        precision=PrecisionSettings(precision, max_wer_increase),
        margin_clips=[(load_audio(row), row.text) for row in tried],
        n_shipped=sum(any(row is one for one in shipped) for row in tried),
        least_words=LEAST_WORDS if margins_s is None else 0,
        compile_check=compile_check,
        also=list(dict.fromkeys(also)),
        overwrite=overwrite,
        progress=say,
    )


def clips_of_margin(every: Sequence[Row], rows: Sequence[Row], decoder: Mapping[str, Any]) -> list[Row]:
    """Rows for the search of a margin: others than `rows`, whose error rate the board reports, where those have words enough."""
    from edgeqlora.data.manifest import evenly
    from edgeqlora_export.margin import LEAST_WORDS, count_words

    shipped = {id(row) for row in rows}
    others = [row for row in every if id(row) not in shipped]
    n_words = count_words(decoder, [row.text for row in others])
    if n_words < LEAST_WORDS:
        others, n_words = list(every), count_words(decoder, [row.text for row in every])
    # Twice as many as the average needs: texts differ in length.
    return evenly(others, max(N_MARGIN, math.ceil(2 * len(others) * LEAST_WORDS / max(1, n_words))))


def parse_margin(text: str) -> list[float] | None:
    """`auto` -> None, `off` -> no margins, `2` -> [2.0]. UserError for another text."""
    if text in ("auto", "off"):
        return None if text == "auto" else []
    try:
        margin_s = float(text)
    except ValueError:
        margin_s = math.nan
    if not 0.1 <= margin_s <= 30:
        raise UserError(f"margin_s={text!r}: allowed are auto, off, and 0.1 to 30 s, such as 2")
    return [margin_s]


PRECISIONS = ("int8", "fp16", "bf16", "fp32")

ALSO = ("ct2", "ggml", "sherpa-onnx")
"""Formats of other runtimes: CTranslate2 (faster-whisper), whisper.cpp, sherpa-onnx."""

N_MARGIN = 32
"""Clips, at least, on which a margin is looked for."""

N_PARITY = 8
"""Clips that the parity gates run on."""


def _folder_of(merged: str) -> Path:
    """The folder itself, or that of the hub's cache, into which a hub model is downloaded."""
    if not is_hub_name(merged):
        return Path(merged)
    from edgeqlora.models.family import cannot_load

    try:
        return hub_snapshot(merged)
    except (OSError, ValueError) as error:
        raise cannot_load(merged, "the model", error) from error


def _plain_profile(profile: Profile, precision: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The profile as the manifest records it, once its unsourced values that are used have been said."""
    from edgeqlora.profiles.load import ENERGY_USES, unsourced_of

    used, of_energy = unsourced_of(profile, precision=precision), unsourced_of(profile, ENERGY_USES)
    if used:
        say(f"no public document confirms these values of {profile.name}, used here: {'; '.join(used)}")
    if of_energy:
        say(
            f"no public document confirms these values of {profile.name}, which its energy figures will rest on: "
            f"{'; '.join(of_energy)}"
        )
    return {**profile.to_plain(), "unsourced_used": used + of_energy}
