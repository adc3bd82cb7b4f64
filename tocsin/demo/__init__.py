"""`tocsin demo`: a small shop that fails in many ways, and how tocsin tells of it."""

from tocsin.demo.play import play

__all__ = ["play"]
