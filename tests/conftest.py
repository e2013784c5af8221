"""What all tests share."""

from jaxtyping import install_import_hook

from tests.support.shapes import checked_modules

# Before anything is imported that is checked.
install_import_hook(list(checked_modules()), "tests.support.shapes.check_shapes")

pytest_plugins = ("pytester", "tests.support.tiers", "tests.support.databases")
