"""Build a bundle's TensorRT engines on this board: checks before, a process for each, and what to do when it is killed."""

import contextlib
import functools
import hashlib
import os
import re
import signal
import subprocess
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from ..board.machine import parse_meminfo_mib
from ..engines.cache import Place, default_cache_dir, engine_key, engine_path, look_up, write_record
from ..engines.request import choose_precision
from ..errors import UserError
from ..files import check_writable, read_json, write_json
from .worker import USER_ERROR, worker_command

Progress = Callable[[str, float], None]
"""Called about twice a second with what is being done and for how many seconds."""

_POLL_S = 0.5
_RUNTIME_MIB = 600
"""CUDA's and TensorRT's libraries and context. A rule of thumb, not measured on a board."""
_GRAPH_COPIES = 4
"""How often the weights lie in memory at the end of a build: file, network, engine, serialised engine. Derived."""
_DEFAULT_WORKSPACE_MIB = 256
_LEAST_WORKSPACE_MIB = 16
# As TensorRT says it, and NvMap, the memory manager of a Jetson (on stderr alone).
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|insufficient memory|NvMap.*error 12", re.IGNORECASE)


class FreeMemory(NamedTuple):
    """What a build can still take. None: /proc/meminfo does not say."""

    available_mib: Optional[float]
    swap_free_mib: Optional[float]


def build_engines(
    bundle: Any,
    cache_dir: Optional[str] = None,
    progress: Optional[Progress] = None,
    precision: Optional[str] = None,
    workspace_mib: Optional[int] = None,
    force: bool = False,
    check_memory: bool = True,
    root: str = "/",
) -> List[Dict[str, Any]]:
    """Build what is missing of a bundle's engines and return the records of all (see engine_cache).

    cache_dir: where engines are kept, default ~/.cache/edgeqlora/engines. precision: one of the request's; None: the
    first of them. workspace_mib: cap on scratch memory, None: the bundle's. force: build again what is
    there. Each record says in "is_new" whether it was built now.
    Raises UserError when there is no TensorRT or GPU, too little memory, when the build was killed or refused.
    """
    request = bundle.manifest.get("engine_request")
    if not request:
        raise UserError(
            "{}: this bundle asks for no TensorRT engines (engine_request is null): export it for a board whose "
            "profile names a TensorRT version, or use the onnxruntime runtime".format(bundle.folder)
        )
    precision = choose_precision(request, precision)
    if workspace_mib is not None and not 1 <= workspace_mib <= 65536:
        raise UserError("workspace_mib={}, allowed 1 to 65536".format(workspace_mib))
    workspace = workspace_mib or request["workspace_mib"]
    cache_dir = cache_dir or default_cache_dir()
    check_writable(os.path.join(cache_dir, "engine"))
    place = Place(**_work("looking for TensorRT and the GPU", {"do": "probe"}, progress, workspace, None))
    records = []
    for graph in bundle.graphs:
        key = engine_key(bundle, graph, place, precision)
        known = look_up(cache_dir, key)
        if known and not force and workspace_mib in (None, known.get("workspace_mib")):
            records.append(dict(known, is_new=False))
            continue
        memory = read_free_memory(root)
        needed_mib = estimate_build_mib(bundle, graph, workspace)
        if check_memory:
            verify_memory(graph, needed_mib, memory, workspace)
        facts = _work(
            "{}: building in {}".format(graph, precision),
            {
                "do": "build",
                "onnx": os.path.abspath(bundle.graph_path(graph)),
                "optimization_profiles": key["optimization_profiles"],
                "precision": precision,
                "graph_precision": bundle.manifest["graphs"][graph].get("precision") or "fp32",
                "fp32_nodes": bundle.manifest["graphs"][graph].get("fp32_nodes") or [],
                "workspace_mib": workspace,
                "timing_cache": timing_cache_path(cache_dir, place),
                "plan": engine_path(cache_dir, key),
            },
            progress,
            workspace,
            functools.partial(explain_death, graph, memory, workspace),
        )
        facts.update(bundle=bundle.name, created_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        records.append(dict(write_record(cache_dir, key, facts), is_new=True))
    return records


def format_engines(records: List[Dict[str, Any]]) -> str:
    """What was built, one line an engine, notes below."""
    lines = []
    for record in records:
        kept = record.get("n_fp32_layers")
        lines.append(
            "{:<8} {}, {:.1f} MiB, {}{}: {}".format(
                record["key"]["graph"],
                record["precision"],
                record["bytes"] / 2.0**20,
                "built in {:.0f} s".format(record["build_s"]) if record["is_new"] else "was there already",
                ", {} layers kept in fp32".format(kept) if kept else "",
                record["path"],
            )
        )
        lines += ["         note: {}".format(note) for note in record.get("notes") or []]
    return "\n".join(lines)


def read_free_memory(root: str = "/") -> FreeMemory:
    """What /proc/meminfo says is free: memory, and swap, which TensorRT's host side can use."""
    try:
        with open(os.path.join(root, "proc/meminfo")) as file:
            text = file.read()
    except OSError:
        return FreeMemory(None, None)
    return FreeMemory(parse_meminfo_mib(text, "MemAvailable"), parse_meminfo_mib(text, "SwapFree"))


def estimate_build_mib(bundle: Any, graph: str, workspace_mib: Optional[int]) -> float:
    """Memory that a build may take at its peak, MiB: a rule of thumb, not measured on a board."""
    name = bundle.manifest["graphs"][graph]["file"]
    n_bytes = sum(
        os.path.getsize(path) for path in (bundle.path(name), bundle.path(name) + ".data") if os.path.isfile(path)
    )
    return _RUNTIME_MIB + (workspace_mib or _DEFAULT_WORKSPACE_MIB) + _GRAPH_COPIES * n_bytes / 2.0**20


def verify_memory(graph: str, needed_mib: float, memory: FreeMemory, workspace_mib: Optional[int]) -> None:
    """Raises UserError when memory and swap together are less than a build with this workspace cap may take."""
    if memory.available_mib is None:
        return
    free_mib = memory.available_mib + (memory.swap_free_mib or 0.0)
    if free_mib < needed_mib:
        raise UserError(
            "{}: the build may take {:.0f} MiB (estimate), free are {:.0f} MiB of memory and {:.0f} MiB of swap: it "
            "would be killed half way. {}. To try all the same: --no-memory-check".format(
                graph, needed_mib, memory.available_mib, memory.swap_free_mib or 0.0, _advice(workspace_mib)
            )
        )


def explain_death(graph: str, memory: FreeMemory, workspace_mib: Optional[int], code: int) -> str:
    """Why the process that built an engine ended with this exit code (negative: by this signal), and what to do."""
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return (
            "{}: the build was killed (exit code 137): the system ran out of memory. Before it, {} of memory and {} "
            "of swap were free, the workspace cap was {}. {}".format(
                graph,
                _mib(memory.available_mib),
                _mib(memory.swap_free_mib),
                _mib(workspace_mib, "TensorRT's own"),
                _advice(workspace_mib),
            )
        )
    how = "signal {}".format(-code) if code < 0 else "exit code {}".format(code)
    return "{}: the build died ({}). {}".format(graph, how, _advice(workspace_mib))


def timing_cache_path(cache_dir: str, place: Place) -> str:
    """File of measured kernels; it holds for one TensorRT, GPU and power mode."""
    digest = hashlib.sha256(repr(tuple(place)).encode("utf-8")).hexdigest()
    return os.path.join(cache_dir, "timing-{}.cache".format(digest[:24]))


def _work(
    label: str,
    job: Dict[str, Any],
    progress: Optional[Progress],
    workspace_mib: Optional[int],
    explain: Optional[Callable[[int], str]],
) -> Dict[str, Any]:
    """Do a job in a process of its own, and return its result. Raises UserError for every way it can end badly."""
    with tempfile.TemporaryDirectory(prefix="edgeqlora-build-") as folder:
        job_path, log_path = os.path.join(folder, "job.json"), os.path.join(folder, "log")
        job = dict(job, result=os.path.join(folder, "result.json"))
        write_json(job_path, job)
        with open(log_path, "wb") as log:
            code = _wait(label, worker_command(job_path), log, progress)
        if code == 0:
            return read_json(job["result"], "result of the build")
        with open(log_path, "rb") as file:
            log_text = file.read().decode("utf-8", errors="replace").strip()
        if code == USER_ERROR:
            error = read_json(job["result"], "result of the build")["error"]
            is_full = _OUT_OF_MEMORY.search(error + "\n" + log_text) is not None
            raise UserError("{}. Memory ran out. {}".format(error, _advice(workspace_mib)) if is_full else error)
    said = log_text.split("\n")[-8:]
    reason = explain(code) if explain else "{}: the process ended with exit code {}".format(label, code)
    if "bad_alloc" in "".join(said):  # TensorRT's host side gave up before the system killed it
        reason += " Its last words say that memory ran out."
    raise UserError(reason + ("\nIts last lines:\n  " + "\n  ".join(said) if any(said) else ""))


def _wait(label: str, command: List[str], log: Any, progress: Optional[Progress]) -> int:
    start_s = time.monotonic()
    with _ended(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)) as process:
        while True:
            try:
                return process.wait(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                if progress is not None:
                    progress(label, time.monotonic() - start_s)


@contextlib.contextmanager
def _ended(process: Any) -> Iterator[Any]:
    """The process, which does not outlive the block: Ctrl-C must not leave a builder that eats the board's memory."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _advice(workspace_mib: Optional[int]) -> str:
    """What to do when a build with this workspace cap (None: TensorRT's own) has too little memory."""
    workspace = workspace_mib or _DEFAULT_WORKSPACE_MIB
    smaller = max(_LEAST_WORKSPACE_MIB, workspace // 2)
    return (
        "Do one of these: add swap (sudo fallocate -l 4G /swap && sudo chmod 600 /swap && sudo mkswap /swap && sudo "
        "swapon /swap); end the desktop (sudo systemctl isolate multi-user.target); {}export with a smaller "
        "batch".format("a smaller workspace (--workspace-mib {}); ".format(smaller) if smaller < workspace else "")
    )


def _mib(value: Optional[float], unknown: str = "an unknown amount") -> str:
    return unknown if value is None else "{:.0f} MiB".format(value)
