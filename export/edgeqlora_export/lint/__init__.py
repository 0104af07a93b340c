"""What a TensorRT version would refuse of a graph, from its published operator table, before any build."""

from edgeqlora_export.lint.graph import Finding, find_problems, lint_graph
from edgeqlora_export.lint.tables import OperatorTable, known_versions, load_operators, parse_operators

__all__ = [
    "Finding",
    "OperatorTable",
    "find_problems",
    "known_versions",
    "lint_graph",
    "load_operators",
    "parse_operators",
]
