"""Removes passwords and tokens from store URIs and from messages that quote them."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

HIDDEN = "***"
"""Replaces a password or token."""
_SECRET_WORDS = ("pass", "token", "secret", "key", "auth", "credential")


def without_secrets(uri: str) -> str:
    """Returns the URI with passwords and tokens replaced by ``***``, safe for logs and files."""
    parts = _split(uri)
    if parts is None:
        return HIDDEN
    netloc, query = parts.netloc, parts.query
    if parts.password or (parts.username and parts.scheme in ("http", "https")):  # a user name alone may be a token
        user = parts.username if parts.password else HIDDEN
        netloc = f"{user or ''}{':' + HIDDEN if parts.password else ''}@{netloc.rpartition('@')[2]}"
    if _secret_values(parts):
        query = urlencode([(k, HIDDEN if _is_secret(k) else v) for k, v in parse_qsl(query)], safe="*/")
    if (netloc, query) == (parts.netloc, parts.query):
        return uri
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def hide_secrets(text: str, uri: str) -> str:
    """Returns a message of another library, such as an error of the store, without the secrets of the store's URI."""
    parts = _split(uri)
    if parts is None:
        return text.replace(uri, HIDDEN)
    secrets = [parts.password or (parts.username if parts.scheme in ("http", "https") else None)]
    for secret in [secret for secret in secrets if secret] + _secret_values(parts):
        text = text.replace(secret, HIDDEN).replace(unquote(secret), HIDDEN)
    return text


def short_reason(error: BaseException, uri: str) -> str:
    """Returns the message of a store's error on one line of at most 300 characters, without secrets."""
    text = str(getattr(error, "reason", None) or error).partition("\n[SQL: ")[0]  # as SQLAlchemy adds
    reason = hide_secrets(" ".join(text.split())[:300], uri)
    return reason or type(error).__name__


def _split(uri: str) -> SplitResult | None:
    try:
        return urlsplit(uri)
    except ValueError:  # not a valid URI, but it may hold a secret
        return None


def _secret_values(parts: SplitResult) -> list[str]:
    return [value for key, value in parse_qsl(parts.query) if _is_secret(key)]


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in _SECRET_WORDS)
