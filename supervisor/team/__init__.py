"""Asking many at once."""
