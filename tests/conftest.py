"""What all tests share."""

from hypothesis import settings

from tests.support.shapes import check_imports

# Before anything is imported that is checked.
check_imports()

pytest_plugins = ("pytester", "tests.support.tiers", "tests.support.databases")

# A test never asserts a time.
settings.register_profile("bitfront", deadline=None)
settings.load_profile("bitfront")
