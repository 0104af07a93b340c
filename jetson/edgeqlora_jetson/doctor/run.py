"""The doctor: what of this machine stands in the way of a sound measurement, and the command that corrects it."""

import os
from typing import Any, List, Optional

from ..board.detect import detect_board, load_boards
from ..board.l4t import sister_release
from ..board.nvpmodel import read_conf
from ..board.sysfs import Run
from .board import examine_board, examine_clocks, examine_fit, examine_hidden, examine_power_mode, examine_release
from .findings import Finding, format_findings
from .software import Software, examine_onnxruntime, examine_python, examine_tensorrt, read_software
from .system import examine_disk, examine_heat, examine_memory, examine_power, examine_swap

__all__ = ["Finding", "examine", "format_findings"]


def examine(
    bundle: Any = None,
    root: str = "/",
    run: Optional[Run] = None,
    software: Optional[Software] = None,
    with_python: bool = True,
) -> List[Finding]:
    """Look at everything a measurement depends on; changes nothing and takes a few seconds.

    bundle: a bundle.Bundle, to say whether it fits this machine. run(argv) -> (code, output) asks nvpmodel and
    dpkg-query. software: as already read, else it is read here. with_python: also Python and numpy.
    """
    from ..sensors.session import board_facts

    profile = (bundle.manifest.get("profile") or {}) if bundle is not None else None
    boards = load_boards()
    board = detect_board(root, boards, run)
    software = read_software() if software is None else software
    need_mib = (profile or {}).get("memory_budget_mib") if profile and profile.get("name") == board.id else None
    folder = bundle.folder if bundle is not None else os.getcwd()
    release = sister_release(boards.get(board.id or "", {}).get("jetpacks"), board.l4t)
    return (
        examine_board(board, boards)
        + examine_fit(board, profile, software.tensorrt, boards)
        + examine_release(board)
        + examine_power_mode(board, read_conf(root), boards.get(board.id or ""))
        + examine_clocks(board)
        + examine_hidden(board)
        + examine_heat(root, board.is_jetson)
        + examine_power(board_facts(board, bundle), root, board.is_jetson)
        + examine_memory(root, need_mib, board.is_jetson)
        + examine_swap(root, board)
        + (examine_python(software, release) if with_python else [])
        + examine_onnxruntime(software, board.is_jetson, _install_onnxruntime())
        + examine_tensorrt(software, board.is_jetson, release)
        + examine_disk(folder)
    )


def _install_onnxruntime() -> str:
    from ..runtimes.onnxruntime import pip_line

    return pip_line()
