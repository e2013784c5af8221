"""What all tests share."""

from tests.support.shapes import check_imports

# Before anything is imported that is checked.
check_imports()

pytest_plugins = ("pytester", "tests.support.tiers", "tests.support.databases")
