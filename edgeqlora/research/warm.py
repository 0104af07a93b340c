"""Imports what every run of a study needs: the process that its runs are forked from does so once, instead of 10 s a run."""

import importlib

from edgeqlora.quiet import hush

hush()
for name in ("bitsandbytes", "peft", "edgeqlora.training.trainer", "edgeqlora.lora.loading", "edgeqlora.train"):
    importlib.import_module(name)
for family in importlib.import_module("edgeqlora.models.family").families():
    importlib.import_module(f"edgeqlora.models.{family}")
