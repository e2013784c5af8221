"""The command that writes a first job file: init."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bitfront.errors import SpecError
from bitfront.tasks import TASKS
from service.commands.limits import Size
from service.commands.messages import tell

if TYPE_CHECKING:
    from service.study.first_job import FirstJob

# Everything that takes long to import is imported by the command that needs it.

BUNDLED: Final = "bundled"


@click.command()
@click.argument("job", type=click.Path(dir_okay=False, path_type=Path), default="job.yaml")
@click.option(
    "--model",
    help="bundled, a name of open_clip such as ViT-B-32, a name on the hub such as "
    "openai/clip-vit-base-patch32, or a folder.",
)
@click.option("--weights", help="Of an open_clip name: a pretrained tag or a checkpoint file.")
@click.option(
    "--data",
    help="bundled, a folder with one sub-folder a class, a file of questions or captions, a "
    "table, webdataset shards, or a folder of 'datasets'.",
)
@click.option(
    "--task",
    type=click.Choice([str(task.name) for task in TASKS]),
    help="What the model does.  [default: the usual one for model and data]",
)
@click.option("--max-nbytes", type=Size(), metavar="SIZE", help="Largest checkpoint, such as 60MB.")
@click.option("--study", help="Name of the study.  [default: the name of JOB]")
@click.option("--trials", type=click.IntRange(1), help="How many trials.  [default: 100]")
@click.option("--yes", "-y", is_flag=True, help="Ask nothing: what is not given has its default.")
def init(
    job: Path,
    model: str | None,
    weights: str | None,
    data: str | None,
    task: str | None,
    max_nbytes: int | None,
    study: str | None,
    trials: int | None,
    yes: bool,
) -> None:
    """Write a first job file, JOB, with comments; by default job.yaml.

    What is not given is asked. The file is checked before it is written: paths, kinds, counts of
    samples. A file that is there already is left alone.
    """
    from service.study.first_job import FirstJob, write_job

    if job.exists():
        raise SpecError(f"{job} is there already: name another file, or remove it")
    if yes and (model is None or data is None):
        raise SpecError("--yes asks nothing: give --model and --data, such as --model bundled")
    model = model or _ask(
        "Model (bundled, an open_clip name, a name on the hub, a folder)", BUNDLED
    )
    first = FirstJob(model=model, weights=weights)
    if first.needs_weights and not yes:
        first = FirstJob(model=model, weights=_ask("Weights (a pretrained tag or a file)", None))
    usual = BUNDLED if first.is_bundled else None
    data = data or _ask(
        "Data (bundled, a folder with one sub-folder a class, a file of questions or captions)",
        usual,
    )
    if max_nbytes is None and not yes:
        max_nbytes = _ask_size()
    first = FirstJob(
        model=model,
        weights=first.weights,
        data=data,
        task=task,
        max_nbytes=max_nbytes,
        study=study or _study_name(job),
        trials=trials or 100,
    )
    write_job(first, job)
    _tell_next(first, job)


def _ask(question: str, usual: str | None) -> str:
    """The answer; whoever cannot be asked is told which options there are.

    Raises:
        SpecError: The answers end.
    """
    try:
        answer: str = click.prompt(question, default=usual, err=True)
    except click.Abort as error:
        raise SpecError(
            "there is nobody to ask: give --model, --data and, for an open_clip name, --weights; "
            "--yes takes the defaults of the rest"
        ) from error
    return answer.strip()


def _ask_size() -> int | None:
    text = _ask("Largest checkpoint, such as 60MB (none: no limit)", "none")
    return None if text.lower() == "none" else Size().convert(text, None, None)


def _study_name(job: Path) -> str:
    """The file's name with what a study cannot be called left out."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in job.stem)
    return name.strip("._-")[:64] or "first"


def _tell_next(first: "FirstJob", job: Path) -> None:
    tell(f"{job} is written; next:")
    commands = ("validate {}", "submit {} --dry-run", "submit {}")
    for command in commands if not first.is_bundled else commands[-1:]:
        tell(f"  bitfront {command.format(job)}")


COMMANDS: Final = (init,)
