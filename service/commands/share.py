"""Commands that hand a study's results to other programs: export, export-optuna, export-mlflow."""

from pathlib import Path
from typing import Final

import click

from bitfront.errors import SpecError
from service.commands.deployment import DatabaseUrl, StudyName, database_option
from service.commands.messages import tell
from service.views.exports import FORMATS

# Everything that takes long to import is imported by the command that needs it.


@click.command()
@click.argument("study", type=StudyName())
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="json is one object a line.  [default: by the suffix of --out, or csv]",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@database_option
def export(study: str, form: str | None, out: Path | None, url: str) -> None:
    """Print all trials of STUDY, in whatever state, with what became of them."""
    from service.api.database import open_database
    from service.views.exports import chosen_format, write_rows
    from service.views.render import trial_rows

    chosen = chosen_format(form, out, "csv")
    if chosen == "table":
        raise SpecError(f"--out {out}: trials are exported as {', '.join(FORMATS)}: name one")
    with open_database(url) as database:
        rows = trial_rows(database.study(study).trials())
    if not rows:
        tell(f"study {study} has no trial yet: see 'bitfront status {study}'")
    write_rows(rows, chosen, out)


@click.command("export-optuna")
@click.argument("study", type=StudyName())
@click.argument("target", metavar="OPTUNA.DB", type=DatabaseUrl())
@database_option
def export_optuna(study: str, target: str, url: str) -> None:
    """Write the finished trials of STUDY to OPTUNA.DB, a file or URL, as an Optuna study.

    optuna-dashboard and Optuna's other tools open it. Repeat the command to add what is new:
    nothing is ever read back. Optuna takes about half a minute for 1,000 trials of 30 blocks.
    """
    from service.api.database import open_database

    with open_database(url) as database:
        done = database.study(study).export_optuna(target)
    tell(f"study {study}: {done.added} trials added to {done.known} known")
    if done.partial:
        tell(
            f"{done.partial} of them chose what was not known when the export was first made, and "
            "lack that parameter: an export to a new file has it"
        )
    place = target if target.startswith("sqlite:") else "URL"  # a URL may hold a password
    tell(f"'optuna-dashboard {place}' shows it")


@click.command("export-mlflow")
@click.argument("study", type=StudyName())
@click.argument("uri")
@database_option
def export_mlflow(study: str, uri: str, url: str) -> None:
    """Write the finished trials of STUDY to MLflow at URI, a server or sqlite:///FILE.

    Repeat the command to add what is new: nothing is ever read back. A job with
    tracking.mlflow does the same while it runs.
    """
    from service.api.database import open_database

    with open_database(url) as database:
        added = database.study(study).export_mlflow(uri)
    tell(f"study {study}: {added} trials added to experiment {study} at {uri}")


COMMANDS: Final = (export, export_optuna, export_mlflow)
