"""The debug API and the page, as an application of their own or within a team's own."""

from tocsin.api.app import create_app

__all__ = ["create_app"]
