"""Benches on other machines over SSH: copy a bundle, run its runner there, bring the report back."""

from edgeqlora.errors import UserError

try:
    import asyncssh  # noqa: F401 (an extra: said here, once for all modules of this folder)
except ImportError as error:
    raise UserError(f"benching on other machines needs asyncssh ({error}): pip install asyncssh") from error

from edgeqlora.remote.bench import HostResult, bench_hosts
from edgeqlora.remote.compare import format_comparison

__all__ = ["HostResult", "bench_hosts", "format_comparison"]
