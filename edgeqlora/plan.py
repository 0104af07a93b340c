"""`edgeqlora plan`: what a model will take on a machine, before it is trained or exported."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.hub_access import hub_config, is_hub_name
from edgeqlora.profiles.load import load_profile
from edgeqlora.settings import parse_windows
from edgeqlora_jetson.files import write_json

SCHEMA = "edgeqlora.plan/1"


def plan(
    model: str,
    *,
    target: str = "cpu",
    jetpack: str | None = None,
    window_s: str | None = None,
    precision: str | None = None,
    batch: int = 1,
    threads: int | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Memory, work and time of `model`, a folder or hub name, on the machine of profile `target`; weights are not read.

    window_s: windows in s, default the model's own. precision: fp16, fp32 or, where it is offered, bf16 on a board, int8 or fp32 on a CPU; default: the profile's first.
    output: a JSON file to write. Returns its content. Raises UserError for what cannot be.
    """
    profile = load_profile(target, jetpack)
    plain = profile.to_plain()
    for_cpu = profile.kind == "cpu" and not profile.tensorrt
    allowed = [p for p in profile.precisions if p in (("int8", "fp32") if for_cpu else ("fp16", "bf16", "fp32"))]
    precision = precision or allowed[0]
    if precision not in allowed:
        raise UserError(f"precision={precision!r}: {profile.name} is planned for in {', '.join(allowed)}")
    if not 1 <= batch <= profile.max_batch:
        raise UserError(f"batch={batch}: {profile.name} is asked for 1 to {profile.max_batch} clips at a time")
    if for_cpu and batch > 1:
        raise UserError(f"batch={batch}: on a CPU clips are measured one at a time; leave --batch away")
    if threads is not None and not for_cpu:
        raise UserError(f"threads={threads}: {profile.name} is planned for by its GPU; leave --threads away")
    if threads is not None and not 1 <= threads <= 1024:
        raise UserError(f"threads={threads}: allowed are 1 to 1024; default: one for each core")
    if output is not None and output.exists() and not output.is_file():
        raise UserError(f"{output} is no file: give --output the name of a JSON file")
    from edgeqlora.models.family import cannot_load
    from edgeqlora_export.plan.estimate import estimate
    from edgeqlora_export.plan.skeletons import look_at, read_sizes

    try:
        folder_of_config = hub_config(model) if is_hub_name(model) else Path(model)
    except (OSError, ValueError) as error:
        raise cannot_load(model, "the config", error) from error
    sizes = read_sizes(folder_of_config)
    longest_s = min(sizes.longest_window_s, profile.max_window_s)
    windows_s = (parse_windows(window_s) if window_s else None) or [longest_s]
    if max(windows_s) > longest_s:
        raise UserError(
            f"window_s={max(windows_s):g}: {model} on {profile.name} takes at most {longest_s:g} s; pass a shorter --window-s"
        )
    with tempfile.TemporaryDirectory(prefix="edgeqlora-plan-") as folder:
        found = look_at(
            sizes, Path(folder), opset=profile.opset, for_cpu=for_cpu, int8=precision == "int8", windows_s=sorted(windows_s),
            threads=threads, say=say,
        )  # fmt: skip
    rows = [estimate(sizes, found[w], plain, w, precision, batch) for w in sorted(windows_s)]
    content = {"schema": SCHEMA, "model": model, "target": profile.name, "measured_here": for_cpu, "windows": rows}
    if output is not None:
        write_json(output, content)
    return content


def format_plan(content: Mapping[str, Any]) -> str:
    """The plan as text, a block for each window."""
    return "\n\n".join(_block(content, row) for row in content["windows"])


def _block(content: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    clips = f", {row['batch']} clips at a time" if row["batch"] > 1 else ""
    lines = [
        f"Plan        {content['model']} on {content['target']}: {row['parameters'] / 1e6:.1f} M parameters, {row['precision']}, "
        f"window of {row['window_s']:g} s{clips}",
        f"Work        {row['encoder_gflop']:.2f} GFLOP for the window"
        + (f", {row['token_gflop']:.4f} for each token" if row["token_gflop"] else ""),
    ]
    parts = ", ".join(f"{name} {mib:.0f}" for name, mib in row["memory"].items())
    lines.append(f"Memory      {row['memory_mib']:.0f} MiB: {parts}")
    if row["fits"] is None:
        lines.append(f"Fits        not known: {row['reasons']['fits']}")
    else:
        advice = f"; {row['advice']}" if row.get("advice") else ""
        lines.append(
            f"Fits        {'yes' if row['fits'] else 'NO'}: the profile allows {row['budget_mib']} MiB{advice}"
        )
    if row["encoder_ms"] is None:
        return "\n".join([*lines, f"Time        not known: {row['reasons']['encoder_ms']}"])
    least = "" if content["measured_here"] else "at least "
    token = f", a token {least}{row['token_ms']:.2f} ms{_limit(row, 'token')}" if row["n_tokens"] else ""
    spoken = f"the window full of speech ({row['n_tokens']} tokens)" if row["n_tokens"] else "the window"
    lines += [
        f"Time        the audio {least}{row['encoder_ms']:.1f} ms{_limit(row, 'encoder')}{token}",
        f"Speed       {spoken} {least}{row['window_ms']:.0f} ms, real-time factor {row['real_time_factor']:.4f}",
    ]
    if content["measured_here"]:
        lines.append("How         measured on this machine, on the model's graphs with random weights")
    else:
        lines.append(
            f"How         counted from the model's graphs; {100 * row['arithmetic_share']:.0f} % of {row['peak_gflops']:.0f} GFLOPS (CUDA cores at "
            f"{row['gpu_mhz']:.0f} MHz, tensor cores not counted) and {100 * row['bandwidth_share']:.0f} % of {row['bandwidth_gbs']:g} GB/s are "
            "assumed, starts of kernels are not counted. Not run on hardware"
        )
    return "\n".join(lines)


def _limit(row: Mapping[str, Any], name: str) -> str:
    return f" (limited by {row['limits'][name]})" if name in row["limits"] else ""
