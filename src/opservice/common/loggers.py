"""The names of loggers that more than one room uses."""

from __future__ import annotations

AUDIT_LOGGER = "opservice.audit"
"""Logs who did what, at whatever level the rest is logged."""
