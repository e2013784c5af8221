"""A database's URL as a person may see it, and what its server says of it."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.location import mask, parse_url, shown

SECRET = "Hunter2"
awkward = st.lists(st.sampled_from([*"ab1:/?#&=%'\"\\,;|{} ", "password=", "://"])).map("".join)


@given(left=awkward, right=awkward)
def test_the_password_of_a_url_is_neither_shown_nor_repeated(left: str, right: str) -> None:
    password = f"{left}{SECRET}{right}"
    url = parse_url(f"postgresql://me:{quote(password, '')}@host/name")

    texts = (shown(url), mask(f"no entry for {password}", url), mask(f"not {url.password}", url))

    assert url.password == password
    assert SECRET not in "".join(texts)
    assert shown(url) == "postgresql://me:***@host/name"


@pytest.mark.parametrize("name", ["password", "sslpassword", "passwd", "secret_key", "PASSWORD"])
@given(left=awkward, right=awkward)
def test_a_secret_option_is_neither_shown_nor_repeated(name: str, left: str, right: str) -> None:
    secret = f"{left}{SECRET}{right}"
    url = parse_url(f"postgresql://me@host/name?{name}={quote(secret, '')}&sslmode=disable")

    assert shown(url) == "postgresql://me@host/name?sslmode=disable"
    assert SECRET not in mask(f"invalid option {secret}", url)


def test_what_a_server_says_of_another_url_or_of_options_is_masked_too() -> None:
    url = parse_url("postgresql://me@host/name")

    said = mask("postgresql://u:p/w@other/db, host=h passwd=pw secret_access_key=pw", url)

    assert said == "postgresql://u:***@other/db, host=h passwd=*** secret_access_key=***"
