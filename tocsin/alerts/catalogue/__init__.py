"""Every text that people read in a chat, in the languages of `TOCSIN_LANGUAGE`."""

from __future__ import annotations

from tocsin.alerts.catalogue import en, ru

CATALOGUES = {"en": en.TEXTS, "ru": ru.TEXTS}


class Texts:
    """The catalogue of one language."""

    def __init__(self, language: str) -> None:
        self._texts = CATALOGUES[language]

    def __call__(self, key: str, /, **values: object) -> str:
        """The text for `key`; values are filled in as they are, never read as a template."""
        return self._texts[key].format(**values)
