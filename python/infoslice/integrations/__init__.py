"""Adapters to other libraries; nothing else of the package imports them."""
