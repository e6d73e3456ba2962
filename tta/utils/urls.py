"""URLs as they may be shown and written down: without the login that a user may have typed into them."""

from __future__ import annotations

import re

# One slash is what remains of two when a URL was taken for a path.
_LOGIN = re.compile(r"""(\b[a-z][a-z0-9+.-]*:/{1,2})[^/?#\s"']+@""", re.IGNORECASE)


def redact(text: str) -> str:
    """Replace the logins of all URLs in a text: ``https://me:password@host/x`` becomes ``https://***@host/x``."""
    return _LOGIN.sub(r"\1***@", text)
