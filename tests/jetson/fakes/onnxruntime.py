"""onnxruntime with the CUDA and TensorRT providers of a board, played by the CPU provider.

What differs from the real package: providers that are claimed, options that they accept, log lines on file descriptor
2, and the provider's name in profiles. Graphs are executed and profiled by the real package.
"""

import json
import os
import types

import onnxruntime as real

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
OPTIONS = {"trt_max_workspace_size", "trt_fp16_enable", "trt_engine_cache_enable", "trt_engine_cache_path"}
OPTIONS |= {"trt_layer_norm_fp32_fallback"} | {"trt_profile_{}_shapes".format(bound) for bound in ("min", "opt", "max")}


def make_onnxruntime(available, placed=None, options=OPTIONS, log="", refused=(), version="1.23.0"):
    """A module. available: providers besides CPU. placed: op -> provider that runs it (others: the first asked for).

    log: what it writes to stderr when a session is opened. refused: providers whose sessions fail to open. version: up
    to 1.22 the fallback is not asked about.
    """
    module = types.ModuleType("onnxruntime")
    module.__version__ = version
    falls_back = (1, 15) <= tuple(int(n) for n in version.split(".")[:2]) < (1, 23)
    module.opened = []  # (path, providers, provider_options)
    for name in ("SessionOptions", "GraphOptimizationLevel", "ExecutionMode", "OrtValue"):
        setattr(module, name, getattr(real, name))
    module.get_available_providers = lambda: [*available, CPU]

    class Binding(object):
        def __init__(self, session):
            self._binding = session.io_binding()

        def __getattr__(self, name):
            return getattr(self._binding, name)

        def bind_output(self, name, device_type="cpu"):
            self._binding.bind_output(name, "cpu")  # the fake device's memory is the machine's

    class InferenceSession(object):
        def __init__(self, path, sess_options, providers, provider_options, enable_fallback=1):
            if enable_fallback:
                raise AssertionError("with fallback on, onnxruntime prints and drops providers by itself")
            try:
                self._open(path, sess_options, providers, provider_options)
            except RuntimeError as error:
                if not falls_back:
                    raise
                # _enable_fallback = True, whatever was asked for (onnxruntime_inference_collection.py, 1.15 to 1.22)
                fallback = [CUDA, CPU] if TENSORRT in available and CUDA in available else [CPU]
                print("*************** EP Error ***************")
                print("EP Error {} when using {}".format(error, providers))
                print("Falling back to {} and retrying.".format(fallback))
                print("****************************************")
                self._open(path, sess_options, fallback, [{} for _ in fallback])

        def _open(self, path, sess_options, providers, provider_options):
            for provider, given in zip(providers, provider_options):
                unknown = sorted(set(given) - (options if provider == TENSORRT else set()))
                if unknown:
                    raise RuntimeError("Invalid TensorRT EP option: " + unknown[0])
                if provider in refused:
                    raise RuntimeError("CUDA failure 999: unknown error ; GPU=0 ; hostname=board")
            os.write(2, log.encode("utf-8"))
            module.opened.append((path, list(providers), list(provider_options)))
            self._providers = list(providers)
            self._session = real.InferenceSession(path, sess_options=sess_options, providers=[CPU])
            for given in provider_options:
                if given.get("trt_engine_cache_enable") == "True":
                    with open(os.path.join(given["trt_engine_cache_path"], "graph.engine"), "wb"):
                        pass

        def get_providers(self):
            return self._providers

        def get_inputs(self):
            return self._session.get_inputs()

        def get_outputs(self):
            return self._session.get_outputs()

        def io_binding(self):
            return Binding(self._session)

        def run_with_iobinding(self, binding):
            self._session.run_with_iobinding(binding._binding)

        def end_profiling(self):
            path = self._session.end_profiling()
            with open(path) as file:
                events = json.load(file)
            for event in events:
                arguments = event.get("args", {})
                if "provider" in arguments:
                    where = (placed or {}).get(arguments["op_name"], (placed or {}).get("*", self._providers[0]))
                    arguments["provider"] = where
            with open(path, "w") as file:
                json.dump(events, file)
            return path

    module.InferenceSession = InferenceSession
    return module
