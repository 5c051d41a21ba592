"""Which channels hang together: trace a model into groups of coupled channels."""

from __future__ import annotations

from infoslice.graph.channel_graph import ChannelGraph, ChannelGroup, ChannelSlice, SizeSlice
from infoslice.graph.costs import Costs
from infoslice.graph.index_map import IndexMap
from infoslice.graph.shell import TraceError
from infoslice.graph.trace import trace

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "ChannelSlice",
    "Costs",
    "IndexMap",
    "SizeSlice",
    "TraceError",
    "trace",
]
