"""Fixtures shared by the tests of the backends."""

from .stand_in import server

__all__ = ["server"]
