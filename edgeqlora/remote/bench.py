"""`edgeqlora bench --host`: preflight, copy, run, fetch, on several machines side by side."""

from __future__ import annotations

import asyncio
import logging
import posixpath
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from edgeqlora.errors import UserError
from edgeqlora.remote.connect import SshSettings, connect
from edgeqlora.remote.farcall import Helper, open_far, printable
from edgeqlora.remote.hosts import Host, parse_hosts
from edgeqlora.remote.preflight import check_machine
from edgeqlora.remote.transfer import Tally, copy_bundle
from edgeqlora_jetson.bundle import MANIFEST, Bundle
from edgeqlora_jetson.files import read_json, write_bytes
from edgeqlora_jetson.pyz import PYZ_NAME

REPORT = "report.json"
_LAST_LINES = 8
_SAY_EVERY_S = 5.0
_TAKE_WAIT_S = 15.0
_NOT_VALID = 3
"""Exit code of the runner for a measurement whose report was written but must not be used."""
_OURS = ("--output", "--manifest", "--bundle")
_CONNECTION_LOST = (
    asyncssh.DisconnectError,
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    asyncssh.ChannelOpenError,
    ConnectionError,
    asyncio.IncompleteReadError,
)


@dataclass(frozen=True)
class HostResult:
    """What came of one host."""

    host: str
    """As given."""
    ok: bool
    """The runner ended well and its report is here."""
    report: dict[str, Any] | None
    """The report, also where the runner failed after writing one."""
    report_path: Path | None
    error: str | None
    """What went wrong and what to do; None where ok."""
    copied_bytes: int
    """Sent in this run."""
    skipped_bytes: int
    """There already, checked by SHA-256."""
    seconds: float


def bench_hosts(
    bundle: Path,
    hosts: Sequence[str],
    runner_args: Sequence[str],
    output: Path,
    *,
    remote_dir: str = "edgeqlora-bundles",
    python: str = "python3",
    identity: Path | None = None,
    known_hosts: Path | None = None,
    config: Path | None = None,
    before: Sequence[Sequence[str]] = (),
    say: Callable[[str], None] = print,
) -> list[HostResult]:
    """Copy `bundle` to every host, run its runner there, write output/<host>/report.json; results in order of `hosts`.

    hosts: [user@]host[:port], or aliases of ~/.ssh/config. runner_args: arguments of the runner, for example
    ["bench", "--repeats", "5"]; without a command in front, "bench". remote_dir: folder there, from the home folder;
    the bundle goes into a folder of its name in it. python: program there, its name or path. config: ssh configuration;
    Path("none"): use none. before: runner commands that come first and write no report, for example [["build"]] for
    TensorRT engines. say: gets lines, those of a host begin with its name.

    A host that fails has its reason in HostResult.error; the others go on. Raises UserError before any connection for a
    bundle that is damaged or has no runner, hosts that cannot be read, arguments that mean files of this machine.
    KeyboardInterrupt ends the programs on all hosts first.
    """
    opened = Bundle.load(bundle)
    if PYZ_NAME not in opened.manifest["files"]:
        raise UserError(f"{bundle}: this bundle carries no runner ({PYZ_NAME}): export it again with edgeqlora export")
    parsed = parse_hosts(hosts)
    job = _Job(
        bundle=opened,
        commands=[*(list(args) for args in before), [*check_runner_args(runner_args), "--output", REPORT]],
        output=Path(output),
        remote_dir=_check_remote_dir(remote_dir),
        python=python,
        ssh=SshSettings(identity, known_hosts, config),
        say=say,
    )
    return asyncio.run(_bench_all(job, parsed))


def check_runner_args(runner_args: Sequence[str]) -> list[str]:
    """The runner's arguments with a command in front. Raises UserError for options that name files of this machine."""
    args = list(runner_args)
    for arg in args:
        flag = arg.partition("=")[0]
        # argparse takes every unambiguous beginning of an option.
        for ours in _OURS:
            if len(flag) > 3 and ours.startswith(flag):
                raise UserError(
                    f"{flag} cannot be given together with --host: the runner there uses the bundle's own clips, and "
                    "its report comes back to this machine. Clips to measure on go in with: edgeqlora export --data"
                )
    if not args or args[0].startswith("-"):
        args.insert(0, "bench")
    return args


@dataclass(frozen=True)
class _Job:
    """What is the same for all hosts."""

    bundle: Bundle
    commands: list[list[str]]
    """Of the runner, one after another; the last one writes the report."""
    output: Path
    remote_dir: str
    python: str
    ssh: SshSettings
    say: Callable[[str], None]

    @property
    def folder(self) -> Path:
        return Path(self.bundle.folder)

    @property
    def far_name(self) -> str:
        """Folder of the bundle there: an export of the same name replaces the one before, file by file."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.bundle.name).strip(".") or "bundle"


def _check_remote_dir(remote_dir: str) -> str:
    if not remote_dir or not remote_dir.isprintable() or (remote_dir[0] == "~" and remote_dir[:2] not in ("~", "~/")):
        raise UserError(f"remote_dir={remote_dir!r}, allowed: a folder from the home folder there, or an absolute one")
    return remote_dir


async def _bench_all(job: _Job, hosts: Sequence[Host]) -> list[HostResult]:
    return list(await asyncio.gather(*(_bench_host(job, host) for host in hosts)))


async def _bench_host(job: _Job, host: Host) -> HostResult:
    """One host from connection to report; whatever fails becomes its result."""
    start_s = time.monotonic()
    tally = Tally()
    report_path = job.output / host.folder / REPORT
    fetched: dict[str, Any] | None = None
    error: str | None = None
    failure: str | None = None
    try:
        async with connect(host, job.ssh) as connection, open_far(connection, host, job.python) as far:
            far_folder, executable = await _bring_bundle(job, host, far, connection, tally)
            tally.stage = "running"
            far_report = posixpath.join(far_folder, REPORT)
            await far.ask("remove", path=far_report)
            for command in job.commands:
                failure = await _run(job, host, far, far_folder, [executable, PYZ_NAME, *command])
                if failure is not None:
                    break
            tally.stage = "fetching the report"
            fetched = await _fetch(far, connection, far_report, report_path, is_needed=failure is None)
            if failure is not None:
                raise UserError(failure)
        job.say(f"{host.written}: report in {report_path}")
    except UserError as problem:
        error = str(problem)
    except (asyncssh.Error, OSError, asyncio.TimeoutError) as problem:
        error = _explain(problem, host, tally)
    except Exception as problem:
        # A defect of ours must not take the other hosts' results with it; its traceback goes to stderr.
        logging.getLogger(__name__).exception("%s", host.written)
        error = (
            f"{host.written}: unexpected {type(problem).__name__} while {tally.stage}: {problem} (please report this)"
        )
    if error is not None:
        job.say(f"{host.written}: failed: {error.removeprefix(host.written + ': ')}")
    return HostResult(
        host=host.written,
        ok=error is None,
        report=fetched,
        report_path=report_path if fetched is not None else None,
        error=error,
        copied_bytes=tally.copied_bytes,
        skipped_bytes=tally.skipped_bytes,
        seconds=time.monotonic() - start_s,
    )


async def _bring_bundle(
    job: _Job, host: Host, far: Helper, connection: asyncssh.SSHClientConnection, tally: Tally
) -> tuple[str, str]:
    """Check the machine, copy what it lacks; returns the bundle's folder and the Python there."""
    facts = await far.ask("look", folder=job.remote_dir)
    summary = check_machine(facts, host.written, job.python, job.commands[-1])
    far_folder = posixpath.join(facts["folder"], job.far_name)
    job.say(f"{host.written}: {summary}")
    await far.ask("take", folder=far_folder, wait_s=_TAKE_WAIT_S)
    tally.stage = "copying"
    start_s = time.monotonic()
    itself = {"bytes": (job.folder / MANIFEST).stat().st_size, "sha256": job.bundle.manifest_sha256}
    files = {**job.bundle.manifest["files"], MANIFEST: itself}
    await copy_bundle(
        far, connection, job.folder, files, far_folder, facts["free_bytes"], tally, _progress(job, host, start_s)
    )
    job.say(
        f"{host.written}: bundle in {far_folder}, {_mb(tally.copied_bytes)} copied, "
        f"{_mb(tally.skipped_bytes)} there already, every file checked by sha256"
    )
    return far_folder, facts["executable"] or job.python


def _progress(job: _Job, host: Host, start_s: float) -> Callable[[int, int], None]:
    """Progress of a copy: a line every few seconds with the time left."""
    said_s = start_s
    first: int | None = None

    def show(done: int, total: int) -> None:
        nonlocal said_s, first
        now_s = time.monotonic()
        first = done if first is None else first
        if now_s - said_s < _SAY_EVERY_S:
            return
        said_s = now_s
        left = ""
        if done > first:
            left_s = int((total - done) * (now_s - start_s) / (done - first))
            left = f", {left_s // 60}:{left_s % 60:02d} left"
        job.say(f"{host.written}: copying, {_mb(done)} of {_mb(total)}{left}")

    return show


async def _run(job: _Job, host: Host, far: Helper, far_folder: str, argv: list[str]) -> str | None:
    """Run the runner there, its lines going to `say`; returns why it failed, None where it ended well."""
    last: deque[str] = deque(maxlen=_LAST_LINES)

    def on_line(text: str, stream: str) -> None:
        text = printable(text).rstrip()
        if text:
            last.append(text)
        job.say(f"{host.written}: {text}")

    code = (await far.ask("run", on_line, argv=argv, folder=far_folder))["code"]
    if code == 0:
        return None
    lines = "".join(f"\n    {line}" for line in last)
    if code in (-9, 137):
        why = "was killed there, most likely for lack of memory: add swap, stop the desktop (headless), or a smaller batch"
    elif code < 0:
        why = f"was ended there by signal {-code}"
    elif code == _NOT_VALID:
        why = "says that this measurement is not valid"
    else:
        why = f"ended with exit code {code}"
    return f"{host.written}: the runner {why}. Its last lines:{lines or ' none'}"


async def _fetch(
    far: Helper, connection: asyncssh.SSHClientConnection, far_report: str, path: Path, *, is_needed: bool
) -> dict[str, Any] | None:
    """Bring the report here, whole or not at all; None where there is none and none is needed."""
    try:
        async with connection.start_sftp_client() as sftp, sftp.open(far_report, "rb") as file:
            data = await file.read()
    except asyncssh.SFTPNoSuchFile:
        if is_needed:
            raise UserError(f"{far.host.written}: the runner ended well but wrote no {far_report}") from None
        return None
    assert isinstance(data, bytes)
    await asyncio.to_thread(write_bytes, path, data)
    report = read_json(path, "report")
    if not isinstance(report, dict):
        raise UserError(f"{path}: a report is a JSON object, this is {type(report).__name__}")
    return report


def _explain(error: BaseException, host: Host, tally: Tally) -> str:
    """An error of the link or of SFTP in words, with the next step."""
    stage = tally.stage
    if isinstance(error, _CONNECTION_LOST):
        there = tally.skipped_bytes + tally.copied_bytes
        if stage == "copying" and tally.total_bytes:
            state = (
                f"{_mb(there)} of {_mb(tally.total_bytes)} had arrived: run the same command again, it goes on there"
            )
        elif stage == "running":
            state = (
                "the runner there ends by itself within 2 minutes: run the same command again, nothing is copied twice"
            )
        else:
            state = "run the same command again"
        return f"{host.written}: the connection was lost while {stage}; {state}"
    if isinstance(error, asyncssh.SFTPError):
        return f"{host.written}: writing there failed while {stage}: {error.reason}. Choose another --remote-dir?"
    return f"{host.written}: failed while {stage}: {error}"


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"
