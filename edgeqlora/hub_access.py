"""The Hugging Face hub: what a name on it looks like, and not waiting for minutes where it cannot be reached."""

from __future__ import annotations

import os
from pathlib import Path


def is_hub_name(source: str) -> bool:
    """Whether `source` is written like `owner/name` and is no path here."""
    return source.count("/") == 1 and not source.startswith((".", "/")) and not Path(source).exists()


def hub_commit(name: str) -> str:
    """Commit of a hub model, 40 hex digits: of the cache where it is there. Raises OSError where it cannot be reached."""
    from transformers.utils.hub import cached_file

    return Path(cached_file(name, "config.json")).parent.name  # .../snapshots/<commit>/config.json


def hub_config(name: str) -> Path:
    """Folder of the cache with a hub model's config.json. Raises OSError where it cannot be reached."""
    stay_offline_without_network()
    from transformers.utils.hub import cached_file

    return Path(cached_file(name, "config.json")).parent


def hub_snapshot(name: str) -> Path:
    """Folder of a hub model in the cache, downloaded as far as it is not there. Raises OSError where it cannot be reached."""
    from huggingface_hub import snapshot_download

    stay_offline_without_network()
    texts, weights = ["*.json", "*.txt", "*.model"], "*.safetensors"
    folder = Path(snapshot_download(name, allow_patterns=[*texts, weights]))
    return folder if list(folder.glob(weights)) else Path(snapshot_download(name, allow_patterns=[*texts, "*.bin"]))


def stay_offline_without_network() -> None:
    """Without a way to the hub, use what is in its cache at once: the hub's client would try for minutes.

    Call before transformers is imported. The name of the hub is looked up, nothing is sent.
    """
    import socket
    from urllib.parse import urlsplit

    if any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # decided already, or names are looked up by the proxy
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
