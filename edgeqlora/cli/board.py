"""Commands about boards: bench (here or over SSH), soak, build, doctor. The runner itself does the measuring."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqlora.cli.messages import done, say
from edgeqlora.errors import UserError

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.", show_default=False)]
Manifest = Annotated[Path | None, typer.Option(help="Clips; default: the bundle's own.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only this many clips.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Default: as the bundle's profile says.")]
Power = Annotated[str, typer.Option(help="auto, none, tegrastats, ina, jtop, nvml or rapl.")]
PowerMode = Annotated[str | None, typer.Option(help="Set this nvpmodel mode first, by name.")]
Runtime = Annotated[str, typer.Option(help="onnxruntime or tensorrt.")]
Provider = Annotated[list[str] | None, typer.Option(help="onnxruntime: cpu, cuda, tensorrt, auto; may be repeated.")]
Precision = Annotated[str | None, typer.Option(help="Of TensorRT: fp16 or fp32; default: the bundle's first.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of TensorRT engines.")]
Host = Annotated[list[str] | None, typer.Option(help="Run on user@board over SSH; may be repeated.")]
Seed = Annotated[int, typer.Option(min=0, help="Order of clips and arrivals.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (bench, soak, build, doctor):
        app.command()(command)


def bench(
    bundle: BundleArgument,
    host: Host = None,
    scenario: Annotated[str | None, typer.Option(help="single-stream, offline or server.")] = None,
    manifest: Manifest = None,
    repeats: Annotated[int, typer.Option(min=1, help="Least passes over the clips.")] = 3,
    min_duration: Annotated[float | None, typer.Option(help="Least seconds; default 20 with power, else 0.")] = None,
    min_count: Annotated[int, typer.Option(min=1, help="Least clips transcribed.")] = 100,
    warmup: Annotated[int, typer.Option(min=0, help="Least calls first, not counted.")] = 5,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips at a time; offline: the profile's.")] = None,
    rate: Annotated[float | None, typer.Option(help="server: clips a second.")] = None,
    target_latency_ms: Annotated[float | None, typer.Option(help="server: limit for the p99.")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    power: Power = "auto",
    power_interval: Annotated[float | None, typer.Option(help="Seconds between power samples.")] = None,
    idle: Annotated[float, typer.Option(min=0, help="Seconds of idle power before the run.")] = 10.0,
    power_mode: PowerMode = None,
    strict: Annotated[bool, typer.Option("--strict", help="A throttled run is not valid.")] = False,
    measure_overhead: Annotated[bool, typer.Option("--measure-overhead", help="And what measuring costs.")] = False,
    runtime: Runtime = "onnxruntime",
    provider: Provider = None,
    precision: Precision = None,
    cache: Cache = None,
    limit: Limit = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="report.json to write; with --host: a folder.")
    ] = None,
    remote_dir: Annotated[str, typer.Option(help="--host: folder there for bundles.")] = "edgeqlora-bundles",
    remote_python: Annotated[str, typer.Option(help="--host: Python there.")] = "python3",
    identity: Annotated[Path | None, typer.Option(help="--host: private key.")] = None,
    known_hosts: Annotated[Path | None, typer.Option(help="--host: file of host keys.")] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="--host: instead of ~/.ssh/config.")] = None,
    build_first: Annotated[bool, typer.Option("--build", help="--host: build TensorRT engines there first.")] = False,
) -> None:
    """Latency, throughput, power, Joules, memory, heat and WER in one run, here or on boards over SSH."""
    arguments = _arguments(
        ("--scenario", scenario),
        ("--repeats", repeats),
        ("--min-duration", min_duration),
        ("--min-count", min_count),
        ("--warmup", warmup),
        ("--batch", batch),
        ("--rate", rate),
        ("--target-latency-ms", target_latency_ms),
        ("--seed", seed),
        ("--threads", threads),
        ("--power", power),
        ("--power-interval", power_interval),
        ("--idle", idle),
        ("--power-mode", power_mode),
        ("--strict", strict),
        ("--measure-overhead", measure_overhead),
        ("--runtime", runtime),
        ("--provider", provider),
        ("--precision", precision),
        ("--cache", cache),
        ("--limit", limit),
    )
    if not host:
        _run(["bench", str(bundle), *arguments, *_arguments(("--manifest", manifest), ("--output", output))])
        return
    if manifest is not None:
        raise UserError(
            "--manifest names clips on this machine and --host measures on another: export the bundle with the clips "
            "(edgeqlora export --data ... --eval-clips N)"
        )
    from edgeqlora.remote import bench_hosts, format_comparison

    folder = output or Path("reports")
    results = bench_hosts(
        bundle,
        host,
        ["bench", *arguments],
        folder,
        remote_dir=remote_dir,
        python=remote_python,
        identity=identity,
        known_hosts=known_hosts,
        config=ssh_config,
        before=[["build", *_arguments(("--precision", precision), ("--cache", cache))]] if build_first else [],
        say=say,
    )
    typer.echo(format_comparison(results))
    n_good = sum(result.ok for result in results)
    done(f"{n_good} of {len(results)} reports in {folder} are good", "the same command again resumes what failed")
    if n_good < len(results):
        raise typer.Exit(3)


def soak(
    bundle: BundleArgument,
    hours: Annotated[float, typer.Option(help="How long; at least a minute.")] = 1.0,
    settle: Annotated[float | None, typer.Option(help="Seconds left out at the start; default a sixth.")] = None,
    max_rss_slope: Annotated[float, typer.Option(help="MiB an hour.")] = 1.0,
    max_p99_drift: Annotated[float, typer.Option(help="% from first to last third.")] = 5.0,
    max_energy_drift: Annotated[float, typer.Option(help="% from first to last third.")] = 5.0,
    manifest: Manifest = None,
    seed: Seed = 0,
    threads: Threads = None,
    power: Power = "auto",
    power_mode: PowerMode = None,
    runtime: Runtime = "onnxruntime",
    provider: Provider = None,
    precision: Precision = None,
    cache: Cache = None,
    limit: Limit = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="soak.json to write.")] = None,
) -> None:
    """The same work for hours: memory growth, drift of latency and energy, throttling, with a verdict."""
    _run(
        [
            "soak",
            str(bundle),
            *_arguments(
                ("--hours", hours),
                ("--settle", settle),
                ("--max-rss-slope", max_rss_slope),
                ("--max-p99-drift", max_p99_drift),
                ("--max-energy-drift", max_energy_drift),
                ("--manifest", manifest),
                ("--seed", seed),
                ("--threads", threads),
                ("--power", power),
                ("--power-mode", power_mode),
                ("--runtime", runtime),
                ("--provider", provider),
                ("--precision", precision),
                ("--cache", cache),
                ("--limit", limit),
                ("--output", output),
            ),
        ]
    )


def build(
    bundle: BundleArgument,
    precision: Precision = None,
    workspace_mib: Annotated[int | None, typer.Option(min=16, help="Most workspace; default: the profile's.")] = None,
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Build again what is there.")] = False,
    no_memory_check: Annotated[bool, typer.Option("--no-memory-check", help="Though little memory is free.")] = False,
) -> None:
    """Build the bundle's TensorRT engines on this machine (engines do not run on other GPUs or versions)."""
    _run(
        [
            "build",
            str(bundle),
            *_arguments(
                ("--precision", precision),
                ("--workspace-mib", workspace_mib),
                ("--cache", cache),
                ("--force", force),
                ("--no-memory-check", no_memory_check),
            ),
        ]
    )


def doctor(
    bundle: Annotated[Path | None, typer.Option(help="Also say whether this bundle fits.")] = None,
) -> None:
    """What of this machine stands in the way of training or of a sound measurement, and what mends it."""
    from edgeqlora.doctor import examine_workstation
    from edgeqlora_jetson.board.detect import detect_board
    from edgeqlora_jetson.bundle import Bundle
    from edgeqlora_jetson.doctor.run import examine, format_findings

    opened = Bundle.load(bundle) if bundle is not None else None
    findings = examine(opened) if detect_board().is_jetson else examine_workstation(opened)
    typer.echo(format_findings(findings))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def _arguments(*pairs: tuple[str, Any]) -> list[str]:
    """Flags for the runner: None and False are left out, True is the flag alone, a list repeats it."""
    arguments: list[str] = []
    for flag, value in pairs:
        if value is True:
            arguments.append(flag)
        elif isinstance(value, list):
            arguments += [part for item in value for part in (flag, str(item))]
        elif value is not None and value is not False:
            arguments += [flag, str(value)]
    return arguments


def _run(arguments: list[str]) -> None:
    from edgeqlora_jetson.__main__ import main as runner

    code = runner(arguments)
    if code:
        raise typer.Exit(code)
