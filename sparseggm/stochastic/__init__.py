"""Traces and variances from random probes, each with its standard error."""

from sparseggm.stochastic.estimators import (
    Estimate,
    estimate_trace_by_hutchinson,
    estimate_trace_by_hutchpp,
    estimate_trace_by_probing,
    estimate_trace_by_xtrace,
    estimate_trace_product,
    estimate_variances_by_probing,
    estimate_variances_by_rao_blackwell,
)

__all__ = [
    "Estimate",
    "estimate_trace_by_hutchinson",
    "estimate_trace_by_hutchpp",
    "estimate_trace_by_probing",
    "estimate_trace_by_xtrace",
    "estimate_trace_product",
    "estimate_variances_by_probing",
    "estimate_variances_by_rao_blackwell",
]
