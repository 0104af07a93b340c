"""From counts to an answer: does it fit, how long does it take at least, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeqlora_export.plan.skeletons import Found, Sizes

ARITHMETIC_SHARE, BANDWIDTH_SHARE = 0.35, 0.6
"""Of a GPU's peaks, that a model of this kind is taken to reach. Assumed: not measured on a board."""
RUNTIME_MIB = 400
"""CUDA context, TensorRT and Python on a board. Assumed: not measured on a board."""
TOKENS_PER_S = 3.0
"""Of read English speech, in Whisper's tokens (librispeech-sample: 1,353 steps for 457 s)."""
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
MIB = 2**20


def estimate(
    sizes: Sizes, found: Found, profile: Mapping[str, Any], window_s: float, precision: str, batch: int
) -> dict[str, Any]:
    """Memory and time of one window. profile: plain values. Figures that cannot be known are None, with a reason in `reasons`."""
    answer: dict[str, Any] = {
        "window_s": window_s, "precision": precision, "batch": batch, "parameters": sizes.parameters, "reasons": {},
        "encoder_gflop": round(found.work[_encoder(found)].flop / 1e9, 3),
        "token_gflop": round(found.work["decoder"].flop / 1e9, 4) if "decoder" in found.work else 0.0,
    }  # fmt: skip
    if found.peak_mib is not None:
        answer |= _measured_here(found)
    else:
        answer |= _on_a_board(sizes, found, profile, window_s, precision, batch, answer["reasons"])
    n_tokens = round(TOKENS_PER_S * window_s) if sizes.decoder_layers else 0
    answer["n_tokens"] = n_tokens
    if answer["encoder_ms"] is not None:
        answer["window_ms"] = answer["encoder_ms"] + n_tokens * answer["token_ms"]
        answer["real_time_factor"] = answer["window_ms"] / 1e3 / window_s
    budget = profile.get("memory_budget_mib")
    answer["budget_mib"] = budget
    answer["fits"] = None if budget is None else bool(answer["memory_mib"] <= budget)
    if budget is not None and not answer["fits"]:
        answer["advice"] = _advice(answer, float(budget), batch)
    if budget is None:
        answer["reasons"]["fits"] = f"the profile {profile['name']} names no memory_budget_mib"
    return answer


def _advice(answer: Mapping[str, Any], budget: float, batch: int) -> str:
    """What would fit, of what this machine can be asked for."""
    memory = answer["memory"]
    by_clips = sum(mib for name, mib in memory.items() if name.startswith(("keys", "activations")))
    if batch > 1 and answer["memory_mib"] - by_clips * (1 - 1 / batch) <= budget:
        return "--batch 1 would fit"
    if answer["precision"] == "fp32" and answer["memory_mib"] - 0.5 * (by_clips + memory.get("weights", 0)) <= budget:
        return "--precision fp16 would fit"
    if memory.get("weights", 0) > budget:
        return "its weights alone do not: a smaller model"
    return "a shorter --window-s takes less for activations; else a smaller model"


def _encoder(found: Found) -> str:
    return "encoder" if "encoder" in found.work else "ctc"


def _measured_here(found: Found) -> dict[str, Any]:
    """Graphs for a CPU run here: times of this machine, memory of the runner's process."""
    return {
        "memory_mib": found.peak_mib,
        "memory": {"peak of the runner's process": found.peak_mib},
        "encoder_ms": found.encoder_ms,
        "token_ms": found.step_ms,
        "limits": {},
    }


def _on_a_board(
    sizes: Sizes,
    found: Found,
    profile: Mapping[str, Any],
    window_s: float,
    precision: str,
    batch: int,
    reasons: dict[str, str],
) -> dict[str, Any]:
    share = BYTES[precision] / 4  # the graphs are counted in fp32
    largest = max(work.largest_bytes for work in found.work.values())
    memory = {
        "weights": found.weight_bytes * share / MIB,
        "keys and values": _cache_bytes(sizes, window_s) * share * batch / MIB,
        "activations (twice the largest step of a graph)": 2 * largest * share * batch / MIB,
        "workspace (the profile's cap)": float(profile.get("workspace_mib") or 0),
        "runtime (assumed)": float(RUNTIME_MIB),
    }
    answer: dict[str, Any] = {
        "memory": memory,
        "memory_mib": sum(memory.values()),
        "encoder_ms": None,
        "token_ms": 0.0,
        "limits": {},
    }
    cores, bandwidth, mhz = profile.get("gpu_cores"), profile.get("memory_bandwidth_gbs"), clock_mhz(profile)
    missing = [
        name
        for name, value in (
            ("gpu_cores", cores),
            ("memory_bandwidth_gbs", bandwidth),
            ("gpu_max_mhz of its power mode", mhz),
        )
        if not value
    ]
    if missing:
        reasons["encoder_ms"] = f"the profile {profile['name']} has no {' and no '.join(missing)}"
        return answer
    peak = 2 * float(cores or 0) * float(mhz or 0) * 1e6 * (2 if precision != "fp32" else 1)
    answer |= {
        "peak_gflops": peak / 1e9, "bandwidth_gbs": bandwidth, "gpu_mhz": mhz,
        "arithmetic_share": ARITHMETIC_SHARE, "bandwidth_share": BANDWIDTH_SHARE,
    }  # fmt: skip
    for name, graph in (("encoder", _encoder(found)), ("token", "decoder")):
        if graph not in found.work:
            continue
        work = found.work[graph]
        arithmetic_s = work.flop * batch / (ARITHMETIC_SHARE * peak)
        memory_s = work.moved_bytes * share / (BANDWIDTH_SHARE * float(bandwidth or 0) * 1e9)
        answer[f"{name}_ms"] = 1e3 * max(arithmetic_s, memory_s)
        answer["limits"][name] = "arithmetic" if arithmetic_s > memory_s else "memory bandwidth"
    return answer


def _cache_bytes(sizes: Sizes, window_s: float) -> float:
    """Keys and values, in fp32: of the window's audio, 50 positions a second, and of the longest text."""
    if not sizes.decoder_layers:
        return 0.0
    config = sizes.config
    return 4.0 * 2 * sizes.decoder_layers * config.d_model * (round(50 * window_s) + config.max_target_positions)


def clock_mhz(profile: Mapping[str, Any]) -> float | None:
    """Highest GPU clock of the power mode after flashing."""
    name = profile.get("default_power_mode")
    modes = [mode for mode in profile.get("power_modes") or () if mode["name"] == name and mode.get("gpu_max_mhz")]
    return float(modes[0]["gpu_max_mhz"]) if modes else None
