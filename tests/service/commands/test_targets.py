"""`bitfront targets`: what a configuration can be built for, and what is installed here."""

import json
from importlib.metadata import version

from click.testing import CliRunner

from bitfront.targets import TARGETS
from service.cli import main
from service.views.targets import installed_text


def test_the_table_says_what_each_runtime_has_kernels_for() -> None:
    shown = CliRunner().invoke(main, ["targets"])

    assert shown.exit_code == 0, shown.stderr
    for target in TARGETS:
        assert f"--to {target.artefact} " in shown.stdout
        assert target.rest in shown.stdout
        for form in target.formats:
            assert form.kernel in shown.stdout
    assert f"torch {version('torch')}" in shown.stdout


def test_a_program_reads_the_same_as_json() -> None:
    shown = CliRunner().invoke(main, ["targets", "--format", "json"])

    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["target"] for row in rows] == [target.name.value for target in TARGETS]
    blocks = rows[1]["kernels"][0]
    assert blocks["held_bits"]["symmetric"]["3"] == 4
    assert blocks["held_bits"]["asymmetric"]["3"] == 8


def test_what_is_not_installed_comes_with_the_way_to_install_it() -> None:
    said = installed_text("no-such-runtime", "onnxruntime")

    assert said == "no-such-runtime is not installed: pip install 'bitfront[onnxruntime]'"
