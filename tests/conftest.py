"""What all tests share."""

pytest_plugins = ("pytester", "tests.support.tiers", "tests.support.databases")
