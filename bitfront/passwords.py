"""Texts without passwords: the one masker of the store, the logs and the errors."""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

_WORD: Final = re.compile(r"\S+")
_USER: Final = re.compile(r"://[^:/]*:")
_SECRET: Final = r"(?:password|passwd|secret\w{0,40})"
_NAME: Final = re.compile(_SECRET, re.IGNORECASE)
_KEY: Final = rf"{_SECRET}(?:['\"]?\s*=|['\"]\s*:)"
_KEYED: Final = re.compile(
    rf"({_KEY})(\s*)(?:'(?:\\.|[^'\\])*(?:'\S*|\Z)|\"(?:\\.|[^\"\\])*(?:\"\S*|\Z)|(?:\\.|\S)+)",
    re.IGNORECASE | re.DOTALL,
)
_LINE_END: Final = re.compile(rf"({_SECRET}:[ \t]+)\S+[ \t]*$", re.IGNORECASE | re.MULTILINE)
_HIDDEN: Final = "***"


def masked(text: str) -> str:
    """The text with the password of every URL and every `password=...` shown as `***`.

    `password: ...` is one as well if a single word follows up to the end of the line.

    A URL's password ends at the last `@` before a space; a URL with both kinds loses
    everything after its user's name. A quoted `password='...'` ends with its quote, any
    other one at a space. In a URL a space must be `%20`: with a bare one it is not a URL, and
    its password is not found.
    """
    text = _KEYED.sub(rf"\1\2{_HIDDEN}", _WORD.sub(_without_password, text))
    return _LINE_END.sub(rf"\1{_HIDDEN}", text)


def _without_password(found: re.Match[str]) -> str:
    """A word without what stands in it between the user of a URL and the last @."""
    word = found[0]
    end = word.rfind("@")
    user = _USER.search(word, 0, end) if end > 0 else None
    if user is None:
        return word
    password = word[user.end() : end]
    is_ambiguous = re.search(_KEY, password, re.IGNORECASE) is not None
    return f"{word[: user.end()]}{_HIDDEN}{'' if is_ambiguous else word[end:]}"


def is_secret(name: str) -> bool:
    """Whether an option of this name, such as `sslpassword`, has a value that nobody may see."""
    return _NAME.search(name) is not None


def without(text: str, secrets: Iterable[str]) -> str:
    """`masked`, and without these values wherever they stand, as they are or as in a URL."""
    forms = {form for secret in secrets for form in (secret, quote(secret, ""), quote_plus(secret))}
    for form in sorted(forms - {""}, key=len, reverse=True):  # one may be a part of another
        text = text.replace(form, _HIDDEN)
    return masked(text)
