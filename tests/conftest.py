"""Fixtures that several test modules share."""

from __future__ import annotations

from system_manager import system_manager
from user_manager import user_manager

__all__ = ["system_manager", "user_manager"]
