"""Execution by onnxruntime, 1.10 to current: one session a graph."""

import os
import shutil
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..audio.features import feature_shape
from ..decoders import open_decoder
from ..engines.cache import default_cache_dir
from ..engines.request import PRECISIONS
from ..errors import UserError
from .provider_engines import ProviderBuild, engine_options, mark_built
from .providers import (
    CPU,
    CUDA,
    TENSORRT,
    ProviderRefused,
    choose_providers,
    explain_idle,
    heard_stderr,
    is_auto,
    open_session,
    read_placement,
)


class OnnxRuntime(object):
    """The graphs of a bundle, loaded.

    providers: the execution providers really active. version: of onnxruntime. threads: intra-op threads. precision: of
    the graphs, or what the TensorRT provider was asked for. notes: providers that were passed over, and why.
    build: leave for the TensorRT provider to build its engines; without it they must be there.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Any,
        threads: Optional[int] = None,
        providers: Optional[Sequence[str]] = None,
        precision: Optional[str] = None,
        cache_dir: Optional[str] = None,
        place_nodes: bool = False,
        build: Optional[ProviderBuild] = None,
    ) -> None:
        onnxruntime = _import_onnxruntime()
        self.version = onnxruntime.__version__
        self.threads = _choose_threads(bundle, threads)
        self._onnxruntime = onnxruntime
        self._placement: Optional[Dict[str, Dict[str, int]]] = None
        self.notes: List[str] = []
        wanted = choose_providers(providers, onnxruntime.get_available_providers())
        if TENSORRT in wanted:
            self.precision = _engine_precision(bundle, precision)
        elif precision not in (None, "fp32"):
            raise UserError(
                "precision {!r} is TensorRT's to give: the graphs are fp32. Ask for the tensorrt provider or "
                "runtime".format(precision)
            )
        else:
            self.precision = "fp32"
        cache_dir = cache_dir or default_cache_dir()
        while True:
            try:
                idle = self._try(bundle, wanted, cache_dir, place_nodes, build)
            except ProviderRefused as refusal:
                idle = [TENSORRT, str(refusal)]
            if idle is None:
                break
            if not is_auto(providers):
                raise UserError(idle[1])
            self.notes.append(idle[1])
            wanted = [name for name in wanted if name != idle[0]]
            if idle[0] == TENSORRT:
                self.precision = "fp32"

    def node_placement(self) -> Optional[Dict[str, Dict[str, int]]]:
        """Graph -> provider -> nodes it really ran, counted in a warm-up run; None when nobody asked for it."""
        return self._placement

    def _try(
        self, bundle: Any, wanted: List[str], cache_dir: str, place_nodes: bool, build: Optional[ProviderBuild]
    ) -> Optional[List[str]]:
        """Open both sessions; returns [provider, reason] for one that was asked for and does nothing, else None."""
        options: Dict[str, Dict[str, Dict[str, str]]] = {graph: {} for graph in bundle.graphs}
        accelerators = [name for name in wanted if name != CPU]
        if not accelerators and not place_nodes:
            self._open_sessions(bundle, wanted, options, None)
            return None
        engines: Dict[str, Dict[str, str]] = {}
        if TENSORRT in wanted:
            engines = engine_options(bundle, self.precision, self.version, cache_dir, build)
            options = {graph: {TENSORRT: engines[graph]} for graph in bundle.graphs}
        temporary = tempfile.mkdtemp(prefix="edgeqlora-nodes-")
        try:
            with heard_stderr(build.log if build is not None else None) as heard:
                self._open_sessions(bundle, wanted, options, temporary)
            smallest = min(bundle.windows_s)
            open_decoder(bundle, self).warm_up(
                np.zeros((1, *feature_shape(bundle.manifest, smallest)), dtype=np.float32)
            )
            profiles = [self._sessions[graph].end_profiling() for graph in bundle.graphs]
            self._placement = {graph: read_placement(path) for graph, path in zip(bundle.graphs, profiles)}
        except ProviderRefused:
            raise
        except Exception as error:  # of onnxruntime, whose exception classes differ from release to release
            if not accelerators:
                raise
            return [accelerators[0], explain_idle(accelerators[0], str(error))]
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        # Of several, the best one counts: behind TensorRT, CUDA may rightly be left without a node.
        if accelerators and not any(accelerators[0] in nodes for nodes in self._placement.values()):
            return [accelerators[0], explain_idle(accelerators[0], heard[0])]
        if build is not None:
            for graph, given in engines.items():
                mark_built(given, self._placement[graph])
        return None

    def _open_sessions(
        self,
        bundle: Any,
        wanted: List[str],
        options: Dict[str, Dict[str, Dict[str, str]]],
        profile_folder: Optional[str],
    ) -> None:
        self._bindings: Dict[str, Any] = {}
        self._sessions = {
            graph: _open_graph(
                self._onnxruntime,
                bundle.graph_path(graph),
                self.threads,
                wanted,
                options[graph],
                os.path.join(profile_folder, graph) if profile_folder else None,
            )
            for graph in bundle.graphs
        }
        self.providers = list(next(iter(self._sessions.values())).get_providers())
        self._device = "cuda" if CUDA in self.providers or TENSORRT in self.providers else "cpu"
        for graph, session in self._sessions.items():
            entry = bundle.manifest["graphs"][graph]
            _check_names(session, bundle.graph_path(graph), entry["inputs"], entry["outputs"])

    def run(
        self, graph: str, inputs: Dict[str, Any], shapes: Dict[str, Sequence[int]], keep: Sequence[str] = ()
    ) -> Dict[str, Any]:
        """Run a graph: input name -> array, or what an earlier run kept; gives output name -> array.

        shapes: of every output, as the caller expects it. keep: outputs that stay in the runtime's memory (on its
        device); what stands for them is only good as an input of a later run.
        """
        session = self._sessions[graph]
        if graph not in self._bindings:
            self._bindings[graph] = (session.io_binding(), {})
        binding, bound = self._bindings[graph]
        alive = []  # the binding keeps no array alive
        for name, value in inputs.items():
            if not isinstance(value, np.ndarray):
                # Bound already, and what was kept is never written again: the cross-attention's are bound once a clip.
                if bound.get(name) is not value:
                    binding.bind_ortvalue_input(name, value)
                    bound[name] = value
                continue
            bound.pop(name, None)
            if value.size:
                alive.append(np.ascontiguousarray(value))
                binding.bind_cpu_input(name, alive[-1])
            else:
                alive.append(self._onnxruntime.OrtValue.ortvalue_from_numpy(value))
                binding.bind_ortvalue_input(name, alive[-1])
        # Bound anew each time: a bound output keeps its buffer, whose shape was that of the run before.
        binding.clear_binding_outputs()
        for name in shapes:
            binding.bind_output(name, self._device if name in keep else "cpu")
        session.run_with_iobinding(binding)
        outputs = dict(zip(shapes, binding.get_outputs()))
        return {name: value if name in keep else value.numpy() for name, value in outputs.items()}

    def release(self) -> None:
        """Let go of what earlier runs kept."""
        self._bindings.clear()


def pip_line() -> str:
    """The pip command that brings onnxruntime for this Python."""
    if sys.version_info < (3, 7):
        # The last release with wheels for 3.6; older pip does not find its manylinux_2_17 wheels.
        return "python3 -m pip install -U 'pip>=19.3' && python3 -m pip install onnxruntime==1.10.0"
    return "python3 -m pip install onnxruntime"


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "onnxruntime, which executes the bundle, cannot be imported ({}). Install it: {}".format(error, pip_line())
        ) from error
    return onnxruntime


def _choose_threads(bundle: Any, threads: Optional[int]) -> int:
    if threads is None:
        threads = (bundle.manifest.get("profile") or {}).get("threads")
    n_usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(threads) if threads else n_usable


def _engine_precision(bundle: Any, precision: Optional[str]) -> str:
    if precision is not None and precision not in PRECISIONS:
        raise UserError("precision {!r} is not known, allowed: {}".format(precision, ", ".join(PRECISIONS)))
    request = bundle.manifest.get("engine_request")
    return precision or (request["precisions"][0] if request else "fp32")


def _open_graph(
    onnxruntime: Any,
    path: str,
    threads: int,
    providers: Sequence[str],
    provider_options: Dict[str, Dict[str, str]],
    profile_prefix: Optional[str] = None,
) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads sleep instead of spinning: two sessions on few cores otherwise take the processor from each other
    # (a 2 s clip beside other work on two cores: 160 ms spinning, 60 ms sleeping), and spinning costs energy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
        options.log_severity_level = 2  # warnings say why a provider cannot be had; they are heard, not printed
    try:
        return open_session(onnxruntime, path, options, providers, provider_options)
    except ProviderRefused:
        raise
    except Exception as error:  # onnxruntime's own exception classes differ from release to release
        raise UserError(
            "{}: onnxruntime {} cannot load this graph: {}".format(
                path, onnxruntime.__version__, str(error).strip().split("\n")[0]
            )
        ) from error


def _check_names(session: Any, path: str, inputs: List[str], outputs: List[str]) -> None:
    has_inputs = {node.name for node in session.get_inputs()}
    has_outputs = {node.name for node in session.get_outputs()}
    missing = sorted(set(inputs) - has_inputs) + sorted(set(outputs) - has_outputs)
    if missing:
        raise UserError("{}: this graph lacks {}: export the bundle again".format(path, ", ".join(missing)))
