"""The command that looks at the installation: doctor."""

import json
import sys
from typing import TYPE_CHECKING, Final

import click

from service.commands.deployment import address_option, database_option
from service.commands.formats import TEXT_OR_JSON
from service.commands.messages import tell

if TYPE_CHECKING:
    from service.study.health import Check

_SIGNS: Final = {"ok": "ok", "absent": "-", "warning": "careful", "fails": "FAILS"}
_WIDTH: Final = 28  # of the longest name, that of a runtime


@click.command()
@click.option("--format", "form", type=TEXT_OR_JSON, default="table", show_default=True)
@address_option
@database_option
def doctor(form: str, address: str | None, url: str) -> None:
    """Say what works here and what does not: packages, devices, runtimes, database, cluster, disk.

    The exit code is 1 if something fails that bitfront needs.
    """
    from service.study.health import Health, checks

    failed = 0
    for check in checks(url, address):
        failed += check.health is Health.FAILS
        click.echo(json.dumps(check.to_dict()) if form == "json" else _line(check))
    if failed:
        tell(f"{failed} of these keep bitfront from working")
        sys.exit(1)
    tell("everything that bitfront needs works")


def _line(check: "Check") -> str:
    sign = _SIGNS[check.health].ljust(max(map(len, _SIGNS.values())))
    advice = f"\n{' ' * (_WIDTH + 9)}{check.advice}" if check.advice else ""
    return f"{sign}  {check.name.ljust(_WIDTH)}{check.detail}{advice}"


COMMANDS: Final = (doctor,)
