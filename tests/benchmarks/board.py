"""Measure what the harness claims about itself: what measuring costs, and that it neither leaks nor drifts.

    python tests/benchmarks/board.py BUNDLE [--only polls overhead soak] [--minutes 30] [--pairs 60]

`overhead` reads every sensor TIMES as often as a run does and divides what that costs by TIMES: at the normal rate the
cost is far below what this machine's speed changes by from second to second.

There is no board here: power comes from a made-up sysfs tree of an Orin Nano and from a tegrastats that replays a
recorded line, which cost the processor what real ones cost it, but for the I2C bus.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "jetson"))

ORIN_NANO = 19
"""Recorded line that tegrastats repeats here."""

TIMES = 10
"""How much more often sensors are read to measure what reading costs."""


def measure_overheads(bundle_dir: Path, n_pairs: int, threads: int | None) -> list[dict[str, Any]]:
    """Share of the throughput that sensors take, for each source, and with none but memory and heat, in %."""
    from fakes.boards import write_board_tree
    from fakes.power import recorded_lines, write_tegrastats

    from edgeqlora_jetson.bench.overhead import measure_overhead
    from edgeqlora_jetson.bench.run import first_calls, transcribe
    from edgeqlora_jetson.bench.warmup import warm_up
    from edgeqlora_jetson.bench.workload import load_workload
    from edgeqlora_jetson.bundle import Bundle
    from edgeqlora_jetson.runtimes import open_runtime
    from edgeqlora_jetson.sensors import telemetry
    from edgeqlora_jetson.sensors.session import Sensors
    from edgeqlora_jetson.transcribe import Transcriber

    rows = []
    telemetry.MEMORY_EVERY_S /= TIMES
    telemetry.THERMAL_EVERY_S /= TIMES
    bundle = Bundle.load(bundle_dir)
    with tempfile.TemporaryDirectory() as temporary:
        write_board_tree(temporary + "/root", "orin-nano-r36")
        program = write_tegrastats(temporary + "/bin", [recorded_lines()[ORIN_NANO]])
        os.environ["PATH"] = os.path.dirname(program) + os.pathsep + os.environ["PATH"]
        transcriber = Transcriber(bundle, open_runtime(bundle, threads=threads))
        workload = load_workload(bundle.read_eval_clips(), transcriber, 0)
        calls = [[workload.audios[i] for i in group] for group in first_calls(workload, 1)]

        def run(audios: Any) -> Any:
            return transcribe(transcriber, audios)

        warm_up(run, calls, 20)
        for power in ("none", "ina", "tegrastats"):
            sensors = Sensors.open(bundle, power, 0.2 / TIMES, root=temporary + "/root")
            if power == "none":
                sensors.telemetry.period_s = telemetry.MEMORY_EVERY_S
            with sensors:
                sensors.start_run()
                overhead = measure_overhead(run, calls, sensors.telemetry, n_pairs=n_pairs)
                cost = sensors.telemetry.cost()
            row = {name: overhead[name] / TIMES for name in ("value", "low", "high")}
            row["sampler_cpu_percent"] = 100 * cost["cpu_s"] / cost["active_s"] / TIMES
            rows.append({"power": power, "times": TIMES, "n_pairs": n_pairs, **row})
            print(
                f"{power:<11}{row['value']:+6.2f} %  ({row['low']:+.2f} to {row['high']:+.2f}), "
                f"sampler thread {row['sampler_cpu_percent']:.2f} % of a core",
                flush=True,
            )
    return rows


def measure_polls(n: int = 2000) -> dict[str, float]:
    """Median microseconds of one reading of each sensor, and of parsing one line."""
    from fakes.boards import write_board_tree
    from fakes.power import recorded_lines

    from edgeqlora_jetson.power.ina import InaSource
    from edgeqlora_jetson.power.tegrastats_line import parse_line
    from edgeqlora_jetson.sensors.memory import MemoryMonitor
    from edgeqlora_jetson.sensors.thermal import ThermalMonitor

    medians, line = {}, recorded_lines()[ORIN_NANO]
    with tempfile.TemporaryDirectory() as root:
        write_board_tree(root, "orin-nano-r36")
        memory, thermal = MemoryMonitor(), ThermalMonitor(root)
        memory.start()
        thermal.start()
        readings: dict[str, Any] = {
            "memory (this machine)": memory.poll,
            "thermal (made-up tree)": thermal.poll,
            "ina (made-up tree)": InaSource(root=root).poll,
            "tegrastats line": lambda: parse_line(line),
        }
        for name, read in readings.items():
            times_s = []
            for _ in range(n):
                start_s = time.perf_counter()
                read()
                times_s.append(time.perf_counter() - start_s)
            medians[name] = 1e6 * statistics.median(times_s)
            print(f"{name:<24}{medians[name]:8.1f} us", flush=True)
    return medians


def soak(bundle_dir: Path, minutes: float, threads: int | None, output: Path) -> dict[str, Any]:
    """The runner's own soak, in a process of its own."""
    command = [sys.executable, "-m", "edgeqlora_jetson", "soak", str(bundle_dir), "--hours", str(minutes / 60)]
    command += ["--output", str(output)] + (["--threads", str(threads)] if threads else [])
    subprocess.run(command, check=False)
    report: dict[str, Any] = json.loads(output.read_text())
    return {"verdict": report["verdict"], "checks": report["checks"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--only", nargs="*", default=["polls", "overhead", "soak"], choices=["polls", "overhead", "soak"]
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("board-claims.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    if "polls" in arguments.only:
        result["polls_us"] = measure_polls()
    if "overhead" in arguments.only:
        result["overhead"] = measure_overheads(arguments.bundle, arguments.pairs, arguments.threads)
    if "soak" in arguments.only:
        report = arguments.output.with_name("soak.json")
        result["soak"] = soak(arguments.bundle, arguments.minutes, arguments.threads, report)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {arguments.output}")


if __name__ == "__main__":
    main()
