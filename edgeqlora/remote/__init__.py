"""Benches on other machines over SSH: copy a bundle, run its runner there, bring the report back."""

from edgeqlora.remote.bench import HostResult, bench_hosts
from edgeqlora.remote.compare import format_comparison

__all__ = ["HostResult", "bench_hosts", "format_comparison"]
