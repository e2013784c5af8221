"""No password is in any text, however it is written and wherever it stands."""

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitfront.passwords import is_secret, masked, without

SECRET = "Hunter2"
awkward = st.lists(st.sampled_from([*"ab1:/@?#&=%'\"\\,;|{}", "password=", "://", "***"])).map(
    "".join
)
spaced = st.lists(st.sampled_from([*"a b@:/='\\\n", "password="])).map("".join)
prose = st.lists(st.sampled_from([*"ab ", "x y", ": ", "http://h:80 "])).map("".join)


@given(left=awkward, right=awkward, before=prose, after=prose)
def test_no_password_of_a_url_survives(left: str, right: str, before: str, after: str) -> None:
    url = f"postgresql+psycopg://user:{left}{SECRET}{right}@host:5432/name"

    shown = masked(f"{before} {url} {after}")

    assert SECRET not in shown
    assert "postgresql+psycopg://user:***" in shown


@given(left=awkward, right=awkward, before=prose, after=prose)
def test_no_password_of_a_connection_string_survives(
    left: str, right: str, before: str, after: str
) -> None:
    password = f"a{left}{SECRET}{right}"

    shown = masked(f"{before} host=h password={password} dbname=d {after}")

    assert SECRET not in shown
    assert "host=h password=***" in shown


@given(left=spaced, right=spaced, before=prose, after=prose)
def test_no_quoted_password_survives(left: str, right: str, before: str, after: str) -> None:
    quoted = f"{left}{SECRET}{right}".replace("\\", "\\\\").replace("'", "\\'")

    assert SECRET not in masked(f"{before} password = '{quoted}' host=h {after}")


@given(secret=st.text(min_size=8).filter(lambda text: not re.search(r"\s", text)))
def test_a_password_of_any_letters_is_masked(secret: str) -> None:
    shown = masked(f"redis://:{secret}@host/0?sslpassword={secret}&x=1")

    assert secret not in shown


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user@host:5432/name",
        "http://10.0.0.1:8265/api/jobs/ asked by user@example.org",
        "postgresql://[::1]:5432/name",
        "the database URL has an @ in its password: write that as %40",
        "password authentication failed for user 'x'",
        "max_new_tokens=8, bypassword",
        "s3://bucket/key and sqlite:////a/b.db",
    ],
)
def test_text_without_credentials_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@host/name failed", "postgresql://me:***@host/name failed"),
        ("postgresql://me:p@w:x/y@host/name", "postgresql://me:***@host/name"),
        ("s3://KEY:a/b+c@bucket/spool", "s3://KEY:***@bucket/spool"),
        ("host=h password=pw user=me", "host=h password=*** user=me"),
        ("host=h password='p w' user=me", "host=h password=*** user=me"),
        ('{"password": "p w", "user": "me"}', '{"password": *** "user": "me"}'),
        ("PGPASSWORD=pw psql", "PGPASSWORD=*** psql"),
        ("aws_secret_access_key = pw", "aws_secret_access_key = ***"),
        ("host: h\npassword: pw\nuser: me", "host: h\npassword: ***\nuser: me"),
    ],
)
def test_the_rest_of_the_text_can_still_be_read(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("password", True),
        ("sslpassword", True),
        ("PASSWD", True),
        ("aws_secret_access_key", True),
        ("user", False),
        ("passfile", False),
    ],
)
def test_the_names_of_secret_options_are_known(name: str, *, expected: bool) -> None:
    assert is_secret(name) is expected


@given(before=awkward, secrets=st.lists(st.text("ab/ %é", min_size=2), max_size=4), after=awkward)
def test_known_secrets_are_nowhere(before: str, secrets: list[str], after: str) -> None:
    forms = [*secrets, *(quote(secret, "") for secret in secrets)]

    found = without(before + " ".join(forms) + after, secrets)

    assert not any(form in found for form in forms)
