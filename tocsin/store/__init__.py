"""The only SQL in the house."""

from tocsin.store.engine import Store, open_store

__all__ = ["Store", "open_store"]
