"""The helper that runs on the other machine: looks at files, starts the runner, ends it when the link breaks.

It is sent as text over SSH (farcall.py) and never imported there: Python 3.6 grammar, standard library only, one file.
It talks in lines of JSON. Each request {"op": name, ...} is answered by one {"reply": ...} or {"error": text}; while a
program runs there are {"line": text, "stream": "out" or "err"} before it. An empty line says that the other end is alive.

Why a helper and not one `ssh host command` after another: the SSH server does not end a program whose connection is
gone, and those of Ubuntu 18.04 ignore SSH's signals. The helper sees its input close, or nothing come for SILENCE_S,
and then ends the runner and all that it started.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Dict, List, Optional

READY = "edgeqlora-far 1 ready"
SILENCE_S = 120.0
MAX_LINE = 2000  # characters of a line that is passed on
LOCK = ".edgeqlora-lock"
# Signals that end a program, and how long each is waited for, in seconds.
ENDINGS = ((signal.SIGINT, 5.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))
# Programs that the runner asks (nvpmodel, tegrastats) lie where a shell without login does not look.
SYSTEM_PATHS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
PROBE = """
import json
found = {}
for name in ("numpy", "onnxruntime", "tensorrt"):
    try:
        found[name] = {"version": getattr(__import__(name), "__version__", "unknown")}
    except Exception as error:
        found[name] = {"missing": "%s: %s" % (type(error).__name__, error)}
print("probe " + json.dumps(found))
"""


class Refusal(Exception):
    """Told to the other end as {"error": text}."""


class Far:
    """State of the helper: the runner that is going, and when the other end was last heard."""

    def __init__(self) -> None:
        self.heard_s = time.monotonic()
        self.requests: Any = queue.Queue()
        self.child: Any = None
        self.ending = False
        self.lock = threading.Lock()  # of child and ending
        self.sink_lock = threading.Lock()
        self.folder_lock: Any = None

    # ---- talking

    def emit(self, message: Dict[str, Any]) -> None:
        data = (json.dumps(message) + "\n").encode("ascii")
        try:
            with self.sink_lock:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
        except (OSError, ValueError):
            self.shut_down()

    def listen(self) -> None:
        """Runs in a thread of its own: requests into the queue, until the input closes."""
        try:
            for line in iter(sys.stdin.buffer.readline, b""):
                self.heard_s = time.monotonic()
                if line.strip():
                    self.requests.put(json.loads(line.decode("utf-8")))
        except (OSError, ValueError):
            pass
        self.shut_down()

    def watch(self) -> None:
        """Runs in a thread of its own: a cable that was pulled closes nothing."""
        while time.monotonic() - self.heard_s < SILENCE_S:
            time.sleep(min(5.0, SILENCE_S / 4.0))
        self.shut_down()

    def shut_down(self) -> None:
        """End the runner and then this process. Called from any thread."""
        with self.lock:
            again, self.ending = self.ending, True
            child = self.child
        if again:
            return
        if child is not None:
            end_group(child)
        os._exit(0)

    def serve(self) -> None:
        for thread in (self.listen, self.watch):
            starter = threading.Thread(target=thread)
            starter.daemon = True
            starter.start()
        self.emit({"ready": READY})
        while True:
            request = self.requests.get()
            try:
                self.emit({"reply": getattr(self, "op_" + request.pop("op"))(**request)})
            except Refusal as error:
                self.emit({"error": str(error)})
            except OSError as error:
                self.emit({"error": "{}: {}".format(error.filename or "the file system", error.strerror or error)})
            except Exception as error:
                self.emit({"error": f"the helper failed: {type(error).__name__}: {error}"})

    # ---- requests

    def op_look(self, folder: str) -> Dict[str, Any]:
        """Facts of this machine, and `folder` as an absolute path."""
        folder = os.path.abspath(os.path.join(os.path.expanduser("~"), os.path.expanduser(folder)))
        existing = folder
        while not os.path.isdir(existing):
            existing = os.path.dirname(existing)
        return {
            "folder": folder,
            "python": platform.python_version(),
            "executable": sys.executable,
            "system": platform.system(),
            "machine": platform.machine(),
            "free_bytes": shutil.disk_usage(existing).free,
            "is_writable": os.access(existing, os.W_OK | os.X_OK),
            "existing": existing,
            "modules": probe_modules(),
        }

    def op_take(self, folder: str, wait_s: float) -> None:
        """Make the folder and keep everybody else out of it while this helper lives.

        wait_s: how long to wait for the helper of a connection that just broke, which is ending its runner.
        """
        os.makedirs(folder, exist_ok=True)
        # Append mode: another helper that is turned away must not wipe out whose it is.
        taken = open(os.path.join(folder, LOCK), "a+")  # noqa: SIM115 (held open for as long as this process lives)
        deadline_s = time.monotonic() + wait_s
        while not try_lock(taken):
            if time.monotonic() > deadline_s:
                taken.seek(0)
                owner = taken.read().strip() or "unknown"
                raise Refusal(
                    f"busy: another bench (helper process {owner} there) uses {folder}. Wait until it is done; one "
                    f"whose connection broke ends by itself within {SILENCE_S / 60:.0f} minutes"
                )
            time.sleep(0.2)
        taken.seek(0)
        taken.truncate()
        taken.write(f"{os.getpid()}\n")
        taken.flush()
        self.folder_lock = taken

    def op_survey(self, folder: str, files: Dict[str, Any], block: int) -> Dict[str, Any]:
        """What is there of `files` (name -> {"bytes", "sha256"}): {"state": "same" or "missing", "part_bytes", ...}.

        Of a .part only whole blocks count: pieces of the last one may have arrived out of order.
        """
        answer: Dict[str, Any] = {}
        for name, entry in files.items():
            path = os.path.join(folder, *name.split("/"))
            if os.path.isfile(path) and os.path.getsize(path) == entry["bytes"] and hash_of(path) == entry["sha256"]:
                answer[name] = {"state": "same"}
                continue
            part, part_bytes, part_sha256 = path + ".part", 0, None
            if os.path.isfile(part) and os.path.getsize(part) <= entry["bytes"]:
                part_bytes = os.path.getsize(part) // block * block
                part_sha256 = hash_of(part, part_bytes)
            answer[name] = {"state": "missing", "part_bytes": part_bytes, "part_sha256": part_sha256}
        return answer

    def op_prepare(self, folder: str, names: List[str], manifest: str) -> None:
        """Before copying: subfolders made, and the old manifest gone, so that a half-copied folder is no bundle."""
        for name in names:
            os.makedirs(os.path.dirname(os.path.join(folder, *name.split("/"))), exist_ok=True)
        remove(os.path.join(folder, manifest))

    def op_commit(self, folder: str, name: str, sha256: str) -> Dict[str, Any]:
        """A .part that is whole and right takes its name; else it is removed, and its hash is the reply's "found"."""
        path = os.path.join(folder, *name.split("/"))
        part = path + ".part"
        found = hash_of(part)
        if found != sha256:
            remove(part)
            return {"done": False, "found": found}
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        return {"done": True, "found": found}

    def op_remove(self, path: str) -> None:
        remove(path)

    def op_run(self, argv: List[str], folder: str) -> Dict[str, int]:
        """Run a program in `folder`, line by line, to its end: {"code": exit code, negative for a signal}."""
        paths = os.environ.get("PATH", "").split(os.pathsep)
        paths = [path for path in paths if path] + [path for path in SYSTEM_PATHS if path not in paths]
        env = dict(os.environ, PATH=os.pathsep.join(paths), PYTHONUNBUFFERED="1")
        with self.lock:
            if self.ending:
                raise Refusal("the connection is closing")
            child = self.child = subprocess.Popen(
                argv,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        pumps = [
            threading.Thread(target=self.pump, args=(child.stdout, "out")),
            threading.Thread(target=self.pump, args=(child.stderr, "err")),
        ]
        for pump in pumps:
            pump.daemon = True
            pump.start()
        code = child.wait()
        # A child of the runner that outlived it would hold the pipes open.
        signal_group(child, signal.SIGTERM)
        for pump in pumps:
            pump.join(5.0)
        with self.lock:
            self.child = None
        return {"code": code}

    def pump(self, stream: Any, name: str) -> None:
        for line in iter(stream.readline, b""):
            self.emit({"line": line.decode("utf-8", "replace").rstrip("\r\n")[:MAX_LINE], "stream": name})


def try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def hash_of(path: Any, n_bytes: Optional[int] = None) -> str:
    """SHA-256 of a file, or of its first n_bytes, as hex digits."""
    digest = hashlib.sha256()
    left = os.path.getsize(path) if n_bytes is None else n_bytes
    with open(path, "rb") as file:
        while left > 0:
            data = file.read(min(left, 1 << 20))
            if not data:
                break
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def probe_modules() -> Dict[str, Any]:
    """Which of the runner's modules can be imported here: name -> {"version"} or {"missing": why}.

    In a process of its own: importing them here would take memory beside the measurement.
    """
    command = [sys.executable or "python3", "-c", PROBE]
    try:
        # Not in the home folder: python -c looks for modules where it starts.
        process = subprocess.Popen(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        out = process.communicate(timeout=180)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {}
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith("probe "):
            found: Dict[str, Any] = json.loads(line[len("probe ") :])
            return found
    return {}


def end_group(child: Any) -> None:
    """End a program and all that it started: as Ctrl-C would, then sternly, then for good."""
    for number, patience_s in ENDINGS:
        signal_group(child, number)
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s:
            if not is_group(child):
                return
            time.sleep(0.05)


def signal_group(child: Any, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(child.pid, number)


def is_group(child: Any) -> bool:
    """Whether any process of the program's group is left. Its own end is collected on the way."""
    child.poll()
    try:
        os.killpg(child.pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    Far().serve()
