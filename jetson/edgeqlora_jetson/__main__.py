"""Command line of the runner: info, doctor, build, transcribe, bench, soak."""

import argparse
import io
import os
import signal
import sys
import threading
from typing import Any, List, Optional

from . import __version__
from .commands.setup import run_build, run_doctor
from .commands.transcribe import run_info, run_transcribe
from .errors import UserError
from .pyz import command_name
from .screen import show

_BUNDLE_HELP = "bundle folder (default: the folder of the .pyz that is running)"


class _Parser(argparse.ArgumentParser):
    """Takes flags in full only: an abbreviation would mean something else once there is another flag."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)


def build_parser(prog: Optional[str] = None) -> argparse.ArgumentParser:
    """prog: how the program is called in help and errors (default: as it was started)."""
    parser = argparse.ArgumentParser(
        prog=prog or command_name(),
        description="Run an EdgeQLoRA bundle: turn speech into text on this machine, and measure how well it does.",
    )
    parser.add_argument("--version", action="version", version="edgeqlora-jetson " + __version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    commands.required = True

    info = commands.add_parser("info", help="say what the bundle holds and check its files")
    _add_bundle(info)

    doctor = commands.add_parser(
        "doctor", help="say what stands in the way of a sound measurement, and what corrects it"
    )
    _add_bundle(doctor)

    build = commands.add_parser("build", help="build the bundle's TensorRT engines on this board")
    _add_bundle(build)
    build.add_argument("--precision", help="fp16 or fp32 (default: what the bundle asks for first)")
    build.add_argument("--workspace-mib", type=int, help="most scratch memory (default: as the bundle says)")
    build.add_argument("--cache", help="folder for engines (default ~/.cache/edgeqlora/engines)")
    build.add_argument("--force", action="store_true", help="build again what is there")
    build.add_argument("--no-memory-check", action="store_true", help="build though little memory is free")

    transcribe = commands.add_parser("transcribe", help="print what is said in audio files")
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="WAV file (FLAC, Ogg, MP3 if soundfile is here)")
    transcribe.add_argument("--bundle", help=_BUNDLE_HELP)
    _add_verify(transcribe)
    transcribe.add_argument("--json", action="store_true", help="one JSON object a file, with times")
    _add_runtime(transcribe)

    _add_bench(commands)
    _add_soak(commands)
    return parser


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench", help="measure latency, throughput, power, energy, memory, heat and error rates, write report.json"
    )
    _add_clips(bench)
    bench.add_argument(
        "--scenario",
        help="single-stream (one clip after another), offline (batches), server (random arrivals); "
        "default single-stream, or offline with --batch above 1",
    )
    bench.add_argument("--repeats", type=int, default=3, help="least passes over the clips (default 3)")
    bench.add_argument("--min-duration", type=float, help="least seconds (default 20 where power is measured, else 0)")
    bench.add_argument(
        "--min-count", type=int, default=100, help="least clips transcribed, in whole passes (default 100)"
    )
    bench.add_argument("--warmup", type=int, default=5, help="least calls before measuring, not counted (default 5)")
    bench.add_argument(
        "--batch", type=int, help="clips given to the model together (default 1; offline: the profile's)"
    )
    bench.add_argument("--rate", type=float, help="server: clips a second (default half of what the warm-up reached)")
    bench.add_argument("--target-latency-ms", type=float, help="server: not valid if the p99 is above this")
    bench.add_argument("--seed", type=int, default=0, help="order of clips and arrivals (default 0)")
    bench.add_argument("--idle", type=float, default=10.0, help="seconds of idle power before the run (default 10)")
    bench.add_argument("--power-interval", type=float, help="seconds between power samples (default: what suits)")
    bench.add_argument("--strict", action="store_true", help="a throttled run is not valid")
    bench.add_argument("--measure-overhead", action="store_true", help="also measure what the measuring costs")
    bench.add_argument("--output", "-o", default="report.json", help="where to write the report (default report.json)")
    _add_how(bench)


def _add_soak(commands: Any) -> None:
    soak = commands.add_parser(
        "soak", help="the same for hours: memory growth, drift of latency and energy, throttling"
    )
    _add_clips(soak)
    soak.add_argument("--hours", type=float, default=1.0, help="how long (default 1; at least a minute: 0.0167)")
    soak.add_argument("--settle", type=float, help="seconds left out at the start (default a sixth, at most 600)")
    soak.add_argument("--max-rss-slope", type=float, default=1.0, help="MiB an hour (default 1)")
    soak.add_argument("--max-p99-drift", type=float, default=5.0, help="%% from first to last third (default 5)")
    soak.add_argument("--max-energy-drift", type=float, default=5.0, help="%% from first to last third (default 5)")
    soak.add_argument("--seed", type=int, default=0, help="order of the clips (default 0)")
    soak.add_argument("--output", "-o", default="soak.json", help="where to write the report (default soak.json)")
    _add_how(soak)


def _add_bundle(command: Any) -> None:
    command.add_argument("bundle", nargs="?", help=_BUNDLE_HELP)
    _add_verify(command)


def _add_verify(command: Any) -> None:
    command.add_argument(
        "--verify",
        action="store_true",
        help="hash every file of the bundle again (default: once; then sizes and times are compared)",
    )


def _add_clips(command: Any) -> None:
    _add_bundle(command)
    command.add_argument(
        "--manifest", help='clips: one {"audio": file, "text": what is said} a line (default: the clips in the bundle)'
    )
    command.add_argument("--limit", type=int, help="only the first N clips")


def _add_how(command: Any) -> None:
    command.add_argument(
        "--power", default="auto", help="power source: auto, none, tegrastats, ina, jtop, nvml, rapl (default auto)"
    )
    command.add_argument("--power-mode", help="set this nvpmodel mode first, by name (default: left as it is)")
    _add_runtime(command)


def _add_runtime(command: Any) -> None:
    command.add_argument("--threads", type=int, help="threads (default: as the bundle's profile says)")
    command.add_argument("--runtime", default="onnxruntime", help="onnxruntime or tensorrt (default onnxruntime)")
    command.add_argument(
        "--provider",
        action="append",
        help="onnxruntime: cpu, cuda, tensorrt or auto; may be repeated, best first (default cpu)",
    )
    command.add_argument("--precision", help="of TensorRT: fp16 or fp32 (default: what the bundle asks for first)")
    command.add_argument("--cache", help="folder of TensorRT engines (default ~/.cache/edgeqlora/engines)")


def main(argv: Optional[List[str]] = None, prog: Optional[str] = None) -> int:
    """Run a command; returns its exit code.

    0, 2 for bad input, 3 for a measurement that is not valid, 130 for Ctrl-C, 141 when the reader went away.
    """
    _use_utf8_output()
    _stop_like_ctrl_c()
    args = build_parser(prog).parse_args(argv)
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        show("error: {}".format(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        show("\nstopped", sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _run(args: argparse.Namespace) -> int:
    if args.command == "info":
        return run_info(args.bundle, args.verify)
    if args.command == "transcribe":
        runtime = {
            "name": args.runtime,
            "threads": args.threads,
            "providers": args.provider,
            "precision": args.precision,
            "cache_dir": args.cache,
        }
        return run_transcribe(args.files, args.bundle, args.json, runtime, args.verify)
    if args.command == "doctor":
        return run_doctor(args.bundle, args.verify)
    if args.command == "build":
        return run_build(
            args.bundle,
            args.precision,
            args.workspace_mib,
            args.cache,
            force=args.force,
            check_memory=not args.no_memory_check,
            verify=args.verify,
        )
    if args.command == "bench":
        return _bench(args)
    return _soak(args)


def _bench(args: argparse.Namespace) -> int:
    from .bench.run import Settings
    from .commands.measure import run_bench_command

    settings = Settings(
        scenario=args.scenario,
        warmup=args.warmup,
        repeats=args.repeats,
        min_duration_s=args.min_duration,
        min_count=args.min_count,
        batch_size=args.batch,
        threads=args.threads,
        rate_per_s=args.rate,
        target_latency_ms=args.target_latency_ms,
        seed=args.seed,
        power=args.power,
        power_interval_s=args.power_interval,
        idle_s=args.idle,
        power_mode=args.power_mode,
        strict=args.strict,
        measure_overhead=args.measure_overhead,
        runtime=args.runtime,
        providers=args.provider,
        precision=args.precision,
        cache_dir=args.cache,
    )
    return run_bench_command(args.bundle, args.manifest, args.limit, args.output, settings, args.verify)


def _soak(args: argparse.Namespace) -> int:
    from .commands.measure import run_soak_command
    from .soak.run import SoakSettings

    settings = SoakSettings(
        duration_s=args.hours * 3600.0,
        settle_s=args.settle,
        max_rss_slope_mib_per_h=args.max_rss_slope,
        max_p99_drift_percent=args.max_p99_drift,
        max_energy_drift_percent=args.max_energy_drift,
        threads=args.threads,
        seed=args.seed,
        power=args.power,
        power_mode=args.power_mode,
        runtime=args.runtime,
        providers=args.provider,
        precision=args.precision,
        cache_dir=args.cache,
    )
    return run_soak_command(args.bundle, args.manifest, args.limit, args.output, settings, args.verify)


def _stop_like_ctrl_c() -> None:
    """SIGTERM and SIGHUP (an SSH session that ends) stop a run as Ctrl-C does: what was measured is kept."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name)
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP, and is right
                signal.signal(number, stop)


def _use_utf8_output() -> None:
    """Text is UTF-8 whatever the locale: Python 3.6 in a container (LANG=C) would fail at the first accent."""
    stream: Any = sys.stdout
    # Not when somebody captures the output: their stream is theirs.
    if hasattr(stream, "buffer") and id(stream) == id(sys.__stdout__):
        is_terminal = stream.isatty()
        sys.stdout = io.TextIOWrapper(
            stream.detach(), encoding="utf-8", errors="backslashreplace", line_buffering=is_terminal
        )


if __name__ == "__main__":
    sys.exit(main())
