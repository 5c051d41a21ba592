"""Prune neural networks by the information their channels carry."""

from __future__ import annotations

from infoslice import criteria, ops, perturbation, reference
from infoslice.graph import ChannelGraph, ChannelGroup, TraceError, trace
from infoslice.group_statistics import GroupStatistics
from infoslice.ops import build_info
from infoslice.pruner import PruningResult, prune
from infoslice.report import Report
from infoslice.saving import load_pruned, save_pruned
from infoslice.statistics import Moments
from infoslice.surgery import Edit, PruningPlan, plan

__version__: str = build_info()["version"]

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Edit",
    "GroupStatistics",
    "Moments",
    "PruningPlan",
    "PruningResult",
    "Report",
    "TraceError",
    "__version__",
    "build_info",
    "criteria",
    "load_pruned",
    "ops",
    "perturbation",
    "plan",
    "prune",
    "reference",
    "save_pruned",
    "trace",
]
