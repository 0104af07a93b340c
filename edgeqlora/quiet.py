"""A readable terminal: notices of libraries that the user can do nothing about are silenced here, each with its reason.

Call `hush()` before the first heavy import. Nothing else in the project filters warnings.
"""

import logging
import os
import warnings


def hush() -> None:
    """Silence known, harmless notices; idempotent, imports nothing heavy."""
    # The tokenizers library warns about forks when a data loader starts workers; we never fork after using it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Trainer and generate() print advice about arguments that we set on purpose.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Weight loading of small models flashes a bar that says nothing; our own progress bar is the one to read.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # bitsandbytes looks for an optional compiled kernel for 4-bit *inference* on CPU. We train (and score) on the
    # plain path, so its absence changes nothing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # "torch.distributed: no elastic rendezvous"-style notes on machines without a GPU.
    logging.getLogger("torch.distributed.elastic.multiprocessing.redirects").setLevel(logging.ERROR)
    for category, pattern in (
        # pin_memory on a machine without an accelerator is a no-op.
        (UserWarning, r".*pin_memory.*no accelerator.*"),
        # Paged optimisers have no pages on a CPU; `edgeqlora train` says so in one plain line of its own.
        (UserWarning, r"Paged optimizers are not supported on CPU.*"),
        # PEFT notes that the base model folder has no card or config to compare with; it is a local folder.
        (UserWarning, r"Could not find a config file.*"),
        (UserWarning, r".*Unable to fetch remote file.*"),
        # Merging prints a reminder about 4-bit rounding; we never merge inside 4-bit weights (see merge.py).
        (UserWarning, r"Merge lora module to 4-bit.*"),
        # Gloo prints that the device of barrier() was guessed; on CPU there is only one.
        (UserWarning, r".*barrier\(\).*device.*"),
        (UserWarning, r".*using the device under current context.*"),
        # peft and transformers disagree about names that they are changing.
        (FutureWarning, r".*is_gradient_checkpointing.*"),
        (FutureWarning, r".*gradient_checkpointing_enable.*"),
    ):
        warnings.filterwarnings("ignore", message=pattern, category=category)


def hush_transformers() -> None:
    """Second half, after transformers is imported: its own loggers and bars."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
