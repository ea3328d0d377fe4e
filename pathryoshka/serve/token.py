"""Who may ask: one bearer token in a file that only its owner can read."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

NUM_BYTES = 32
SHORTEST = 16
DEFAULT = Path("~/.pathryoshka/token")


class TokenError(ValueError):
    """A token file that cannot be used; says what to do."""


def token_in(file: Path) -> str:
    """The token in `file`; one is made, in a file of mode 0600, where there is none.

    Raises:
        TokenError: others may read the file, or what is in it is too short to be a secret.
    """
    file = file.expanduser()
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_urlsafe(NUM_BYTES) + "\n")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise TokenError(f"others may read {file}; make it yours alone: chmod 600 {file}")
    token = file.read_text().strip()
    if len(token) < SHORTEST or not token.isascii() or any(c.isspace() for c in token):
        raise TokenError(f"{file} holds no token of {SHORTEST} or more characters; delete it and a new one is made")
    return token


def digest(token: str) -> str:
    """What the service keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def allowed(header: bytes | None, wanted: str | None) -> bool:
    """Whether an Authorization header bears the token with this digest; anyone may where none is wanted."""
    if wanted is None:
        return True
    scheme, _, token = (header or b"").decode("latin-1").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(digest(token.strip()), wanted)
