"""`edgeqlora` without its ten seconds of imports, for tests that call it often: a process that has imported it forks.

    with warm_edgeqlora(folder) as folder:      # put it first on PATH
        subprocess.run(["edgeqlora", "evaluate", ...])

The program found there sends its arguments, folder, environment and its three standard files to that process, whose fork
runs the same `main`. What it does not test is the start of Python itself.
"""

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CLIENT = """#!{python} -S
import array, json, os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({path!r})
asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
files = array.array("i", [0, 1, 2])
line.sendmsg([len(asked).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
line.sendall(asked)
sys.exit(int(line.recv(8) or b"70"))
"""


@contextlib.contextmanager
def warm_edgeqlora(folder: Path) -> Iterator[Path]:
    """Inside the `with`, `folder` holds a program `edgeqlora`."""
    path = folder / "socket"
    server = subprocess.Popen([sys.executable, __file__, str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        end_s = time.monotonic() + 300
        while not path.exists():
            assert server.poll() is None, "the process that imports edgeqlora ended"
            assert time.monotonic() < end_s, "the process that imports edgeqlora is not ready"
            time.sleep(0.05)
        program = folder / "edgeqlora"
        program.write_text(CLIENT.format(python=sys.executable, path=str(path)))
        program.chmod(0o755)
        yield folder
    finally:
        server.terminate()
        server.wait()


def serve(path: str) -> None:
    """Import what the commands import, then answer until ended."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401

    import edgeqlora.cli.main
    import edgeqlora.train  # noqa: F401

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path + ".new")
    listening.listen()
    os.rename(path + ".new", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        line, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            answer(line)
        line.close()


def answer(line: socket.socket) -> None:
    """In a fork: run one command as the client's own process would, then tell its exit code."""
    size, files, _, _ = line.recvmsg(8, socket.CMSG_SPACE(3 * 4))
    descriptors = array.array("i", files[0][2])
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += line.recv(2**20)
    sys.argv, folder, environment = json.loads(asked)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for standard, given in enumerate(descriptors):
        os.dup2(given, standard)
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for part in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        sys.path.insert(0, part)
    from edgeqlora.cli.main import main

    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):
            stream.flush()
    line.sendall(str(code).encode())
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
