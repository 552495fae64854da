"""Is the model that is served the model that was trained? Compares two forms of one model by what they do."""

from .record import PARITY, ParityReport, read_comparisons
from .run import Sides, check_merge, check_run, compare_sides, find_sides, require_base, stock_comparison
from .served import check_served, is_server

__all__ = [
    "PARITY",
    "ParityReport",
    "Sides",
    "check_merge",
    "check_run",
    "check_served",
    "compare_sides",
    "find_sides",
    "is_server",
    "read_comparisons",
    "require_base",
    "stock_comparison",
]
