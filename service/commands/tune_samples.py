"""The part of `bitfront tune` that searches a recovery's settings.

What a person types, and what they see::

    $ bitfront tune demo --max-nbytes 165kB --samples 16 --out tuned
    trial 36 of study demo
    samples ━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 16/16
    sample   error  step     size  state          settings
         9  13.9 %   200   162 kB  complete       adapter /1 in 8 bits, blend 0.5, ...
         0  15.4 %   200   161 kB  complete       prompt 8, class end, adapter /2 in 8 bits, ...
         4  17.0 %    23   161 kB  stopped early  prompt 4, class front, ...
    error on the selection split: 16.8 % quantized, 13.9 % tuned, 8.6 % in full precision
    error on the test split: 17.5 % quantized, 14.8 % tuned, 9.0 % in full precision
    162 kB, of which adapter 4.36 kB
"""

from dataclasses import dataclass
from pathlib import Path

import click

from bitfront.errors import Interrupted, SpecError
from bitfront.files import write_whole
from bitfront.plan import Configuration
from service.commands.model import StoredConfiguration
from service.database_url import patience_s
from service.views.tuning import errors_line, refused_recovery, samples_table, size_line


@dataclass(frozen=True, slots=True)
class Search:
    """How the settings are searched.

    Attributes:
        url: The database.
        samples: How many recoveries are tried.
        fixed: Settings that were given.
        workers: Samples that are trained side by side; None for what the job says.
        address: A Ray cluster; None for this machine.
    """

    url: str
    samples: int
    fixed: frozenset[str]
    workers: int | None
    address: str | None


def search_recovery(
    found: StoredConfiguration,
    configuration: Configuration,
    search: Search,
    max_nbytes: float | None,
    out: Path,
    *,
    keep_worse: bool,
) -> None:
    """Searches in view of the person, and writes the best recovery's folder if it helps.

    Args:
        found: The study, and what earlier stages found for its workers.
        configuration: The plan, and the recovery that is trained first.
        search: How it is searched.
        max_nbytes: What plan and recovery may take together.
        out: Where the recovery goes.
        keep_worse: Whether it is kept even if the plan does no worse without it.
    """
    from service.study.submission import is_cluster
    from service.study.tuning import Wish, tune_study
    from service.views.progress import reporter_for
    from workers.observability.logs import messages

    if is_cluster(search.address):
        raise SpecError(
            "the tuned recovery is written where the command runs: run it on one of the cluster's "
            "machines, with --address auto or HOST:PORT"
        )
    assert configuration.recovery is not None
    wish = Wish(
        plan=configuration.plan,
        bounds=found.bounds,
        first=configuration.recovery,
        fixed=search.fixed,
        samples=search.samples,
        max_nbytes=None if max_nbytes is None else int(max_nbytes),
    )
    try:
        with reporter_for(messages()) as reporter:
            tuned = tune_study(
                found.study.name,
                wish,
                search.url,
                reporter=reporter,
                workers=search.workers,
                address=search.address,
                patience_s=patience_s(),
            )
    except Interrupted as error:
        raise click.ClickException(
            "the tuning was told to end; the same command resumes it"
        ) from error
    click.echo(samples_table(tuned.samples.values()))
    errors = tuned.recovery.selection_error
    click.echo(errors_line(errors))
    click.echo(errors_line(tuned.recovery.test_error, "test"))
    if errors["tuned"] >= errors["quantized"] and not keep_worse:
        raise click.ClickException(refused_recovery(errors))
    for name, content in tuned.recovery.files.items():
        write_whole(out / name, content)
    click.echo(size_line(tuned.recovery.nbytes))
