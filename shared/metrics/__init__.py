"""The metrics of a node, for Prometheus.

GET /metrics of the status API ── Exposition ── METRICS ── Overview
"""

from shared.metrics.exposition import Exposition
from shared.metrics.table import METRICS, table

__all__ = ["METRICS", "Exposition", "table"]
