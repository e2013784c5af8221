"""What all tests share."""

import os

from hypothesis import settings

from tests.support.shapes import check_imports

# Before anything is imported that is checked.
check_imports()

# Tests read MLflow by its own client, which would take over loggers and tell of its use.
os.environ |= {"MLFLOW_CONFIGURE_LOGGING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

pytest_plugins = ("pytester", "tests.support.tiers", "tests.support.databases")

# A test never asserts a time.
settings.register_profile("bitfront", deadline=None)
settings.load_profile("bitfront")
