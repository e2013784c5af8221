"""Whatever a job file or a stored text holds: a value, or one of our own errors in one line."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitfront.errors import BitfrontError, SpecError
from bitfront.job import load_job
from bitfront.plan import Configuration, Option, Plan, canonical_json
from bitfront.precision import Precision
from bitfront.spec import JobSpec
from bitfront.units import parse_nbytes
from workers.scheduling.result_json import from_json, to_json
from workers.scheduling.worker_config import WorkerConfig

RELAXED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
QUICK = settings(RELAXED, max_examples=150, derandomize=True)
LONG = settings(RELAXED, max_examples=10_000)

LONGEST_LINE, MOST_LINES = 2_000, 51

Path_ = tuple[str | int, ...]

# A whole job in which every section and most keys are written down.
WHOLE: dict[str, object] = {
    "study": "first",
    # Of a kind that only loading tells, so that settings of both kinds have an effect.
    "model": {"source": "transformers", "name": "owner/name", "weights": None, "device": "auto"},
    "data": {
        "source": "datasets",
        "path": ".",
        "templates": ["a photo of a {}.", "{}"],
        "prompt": "USER: {}",
        "answer_pattern": "[0-9]+",
        "answer_tokens": 16,
        "samples": {"calibration": 32, "tuning": 64, "selection": 128, "test": 64},
        "seed": 0,
        "batch_size": 8,
    },
    "quantizer": {"scheme": "asymmetric", "scale_search": True, "activations": "static"},
    "space": {
        "weight_bits": [2, 4],
        "activation_bits": [8],
        "groups": [0, 32],
        "clips": [1.0, 0.99],
        "keep": {"visual.*": 8},
        "recovery": {
            "context_length": [0, 4],
            "class_position": ["end"],
            "reduction": [0, 4],
            "adapter_bits": [8],
            "blend": [0.2],
            "teacher": ["templates"],
            "steps": [20],
        },
    },
    "partition": {"granularity": "entropy", "depth": 2, "threshold": 0.5},
    "profile": {
        "measure": "output_kl",
        "slack": 1.5,
        "vision": {"weight_bits": 4, "epochs": 2, "rate": 0.01},
    },
    "objectives": ["error", "nbytes"],
    "constraints": {"max_nbytes": "60MB", "max_error": 0.5, "max_bits": 8, "max_latency_s": 1.5},
    "search": {"sampler": "tpe", "seed": 1, "workers": 2, "budgets": 5, "from_bits": 2.5},
    "stop": {"trials": 30, "time_s": 60.0, "patience": 5},
}

huge = st.sampled_from([0, -1, 10**9, 2**63, -(2**63) - 1, 10**30, 10**400, 1e308, -1e308, 5e-324])
odd_text = st.sampled_from(
    [
        *("", " ", "\x00", "a\x00b", "a\nb", "\x1b[2J", "\u202e", "\ud800", "\U0001f600", "ñ" * 70),
        *("nan", ".inf", "1e400", "40MB", "9" * 400 + "kB", "-1", "0x10", "true", "~", "~nobody/x"),
        *("/", "..", "../../etc/passwd", "/dev/null", "a" * 300, "x" * 5000, "/" * 5000),
        *("{}", "(", "(" * 500, "[[a]", "(a+)+$", "*", "**/*", "w4a8", "end"),
    ]
)
hostile = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), huge, st.integers(), st.floats(), odd_text, st.text()),
        *(st.dates(), st.datetimes(), st.binary(max_size=8)),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_text | st.text(), inner),
    max_leaves=6,
)


def places(content: object, here: Path_ = ()) -> list[Path_]:
    """Every place of nested content, the root left out."""
    pairs: list[tuple[str | int, object]] = []
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content))
    found = [(*here, key) for key, _ in pairs]
    return found + [place for key, value in pairs for place in places(value, (*here, key))]


PLACES = places(WHOLE)


def replaced(content: object, place: Path_, value: object) -> object:
    """The content with another value at a place, if the place is still there."""
    if not place:
        return value
    head, *rest = place
    if isinstance(content, dict) and head in content:
        return {**content, head: replaced(content[head], tuple(rest), value)}
    if isinstance(content, list) and isinstance(head, int) and head < len(content):
        return [
            replaced(item, tuple(rest), value) if index == head else item
            for index, item in enumerate(content)
        ]
    return content


def without(content: object, place: Path_) -> object:
    """The content without what stands at a place."""
    head, *rest = place
    if isinstance(content, dict):
        return {
            key: without(value, tuple(rest)) if key == head and rest else value
            for key, value in content.items()
            if rest or key != head
        }
    return content


changes = st.lists(st.tuples(st.sampled_from(PLACES), hostile), max_size=3)
removals = st.lists(st.sampled_from(PLACES), max_size=2)


@st.composite
def documents(draw: st.DrawFn) -> object:
    """A job that was right until somebody changed it."""
    content: object = WHOLE
    for place in draw(removals):
        content = without(content, place)
    for place, value in draw(changes):
        content = replaced(content, place, value)
    if isinstance(content, dict) and draw(st.booleans()):
        content = {**content, **draw(st.dictionaries(odd_text, hostile, max_size=2))}
    return content


# What means something to YAML.
snippets = st.sampled_from(
    [
        *(
            "&a ",
            "*a ",
            "<<: *a\n",
            "? ",
            ": ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ",",
            "|\n",
            ">\n",
            "---\n",
        ),
        *(
            "...\n",
            "%YAML 1.1\n",
            "%TAG ! tag:x,2000:\n",
            "!!int ",
            "!!float ",
            "!!bool ",
            "!!set ",
        ),
        *("!!timestamp ", "!!binary ", "!!null ", "!!omap ", "!!map ", "!!python/name:os.system "),
        *(
            '""',
            "''",
            '"\\ud800"',
            '"\\x00"',
            '"\\e[2J"',
            "\t",
            "\n",
            "\r",
            "\u2028",
            "\ufeff",
            "#",
        ),
        *("study: first\n", "space:\n", "  weight_bits: ", "stop: {trials: ", "x" * 2000),
        *("0x" + "f" * 5000, "1" + ":59" * 200 + ".5", "2026-99-99", "0b_", "1e999", "=", ".nan"),
    ]
)
texts = st.lists(snippets | st.text(max_size=8), max_size=12).map("".join)


@st.composite
def edited(draw: st.DrawFn) -> str:
    """The text of a whole job with a few pieces put in or cut out."""
    text = yaml.safe_dump(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + draw(snippets | st.text(max_size=3)) + text[stop:]
    return text


def check_file(path: Path, content: bytes) -> JobSpec | None:
    """The job in a file, or None after an error that a person can read."""
    path.write_bytes(content)
    try:
        spec = load_job(path)
    except BitfrontError as error:
        check_message(error)
        return None
    check_round_trip(spec)
    return spec


def check_message(error: BitfrontError) -> None:
    lines = str(error).splitlines()
    assert lines
    assert len(lines) <= MOST_LINES
    for line in lines:
        assert line
        assert line.isprintable(), repr(line)
        assert len(line) <= LONGEST_LINE
        line.encode()


def check_round_trip(spec: JobSpec) -> None:
    content = spec.model_dump(mode="json")
    again = JobSpec.model_validate(json.loads(canonical_json(content)))
    assert again == spec
    assert again.digest == spec.digest
    assert JobSpec.model_validate_json(canonical_json(content)) == spec
    config = WorkerConfig(spec)
    sent = pickle.loads(pickle.dumps(config))
    assert (sent, hash(sent)) == (config, hash(config))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "job.yaml"


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@given(content=documents())
@QUICK
def test_a_job_with_wrong_values_is_refused_in_one_line(job: Path, content: object) -> None:
    check_file(job, yaml.safe_dump(content).encode("utf-8", "surrogatepass"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@given(content=documents())
@LONG
def test_many_jobs_with_wrong_values_are_refused_in_one_line(job: Path, content: object) -> None:
    check_file(job, yaml.safe_dump(content).encode("utf-8", "surrogatepass"))


@given(text=texts | edited())
@QUICK
def test_a_text_is_a_job_or_is_refused_in_one_line(job: Path, text: str) -> None:
    check_file(job, text.encode("utf-8", "surrogatepass"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(text=texts | edited())
@LONG
def test_many_texts_are_jobs_or_are_refused_in_one_line(job: Path, text: str) -> None:
    check_file(job, text.encode("utf-8", "surrogatepass"))


@given(content=st.binary(max_size=200))
@QUICK
def test_bytes_are_a_job_or_are_refused_in_one_line(job: Path, content: bytes) -> None:
    check_file(job, content)


SHORT = "study: first\nmodel: {source: reference}\ndata: {source: reference}\n"
FOUND = {
    "a key that clears the screen": ('"\\e[2J": 1', r"\\x1b\[2J is not a known key"),
    "a key of two lines": ('space: {keep: {"a\\nb": 7}}', r"space.keep.a\\nb: 7 is not possible"),
    "a key without end": ("? " + "k" * 5000 + "\n: 1", r"kkk\.\.\. is not a known key"),
    "a number without end": ("stop: {trials: 0x" + "f" * 5000 + "}", "0xf.* is larger than any"),
    "minutes without end": (
        "stop: {time_s: 1" + ":59" * 200 + ".5}",
        "cannot be read .it is not a valid flo",
    ),
    "a number that is none": (
        'stop: {trials: !!int ""}',
        "'' cannot be read .it is not a valid int",
    ),
    "a truth that is none": (
        "search: {prune: !!bool x}",
        "'x' cannot be read .it is not a valid bool",
    ),
    "a date that is none": (
        "study2: !!timestamp x",
        "'x' cannot be read .it is not a valid timestamp",
    ),
}
PATHS = ("~nobody-of-that-name/x", "a\0b", "a" * 5000, "/" + "a" * 5000)


@pytest.mark.parametrize(("addition", "message"), FOUND.values(), ids=FOUND)
def test_what_once_was_told_badly_is_a_sentence(job: Path, addition: str, message: str) -> None:
    job.write_text(SHORT + addition)

    with pytest.raises(SpecError, match=message) as caught:
        load_job(job)

    check_message(caught.value)


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_a_path_that_no_file_can_have_is_a_sentence(job: Path, path: str) -> None:
    content = {"study": "s", "model": {"source": "reference"}}
    job.write_text(yaml.safe_dump({**content, "data": {"source": "image_folder", "path": path}}))

    with pytest.raises(
        SpecError, match=r"line 2: data.path: .* is not a path that can be read"
    ) as caught:
        load_job(job)

    check_message(caught.value)


@pytest.mark.parametrize(
    "settings_",
    [
        {"shots": 1.5},
        {"steps": True},
        {"distillation": float("nan")},
        {"class_specific": 1},
        {"x": 1},
    ],
)
def test_a_stored_recovery_of_wrong_kinds_is_refused(settings_: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        Configuration.from_dict({"plan": {}, "recovery": settings_})


def test_a_whole_job_is_read(job: Path) -> None:
    assert check_file(job, yaml.safe_dump(WHOLE).encode()) is not None


OVERRIDES = st.dictionaries(
    st.sampled_from(["study", "stop.trials", "search.seed", "search.workers", "stop", "a.b.c"]),
    hostile,
    max_size=2,
)


@given(overrides=OVERRIDES)
@QUICK
def test_what_the_command_line_sets_is_refused_in_one_line(
    job: Path, overrides: dict[str, object]
) -> None:
    job.write_text(yaml.safe_dump(WHOLE))
    try:
        check_round_trip(load_job(job, overrides))
    except BitfrontError as error:
        check_message(error)


json_values = st.recursive(
    st.none() | st.booleans() | huge | st.floats() | odd_text | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
precision_texts = st.from_regex(r"w[0-9]{1,3}a[0-9]{1,2}(g[0-9]{1,4})?(c0\.[0-9]{1,5})?") | st.text(
    alphabet="wagc0123456789.+", max_size=20
)


def value_or_none(parse: Callable[[object], object], content: object) -> object:
    """What was parsed; None where that was refused as it ought to be."""
    try:
        return parse(content)
    except SpecError as error:
        check_message(error)
        return None


@given(text=precision_texts | odd_text | st.just("w4a8g" + "9" * 5000))
@QUICK
def test_a_text_is_a_precision_or_is_refused(text: str) -> None:
    precision = value_or_none(lambda t: Precision.parse(str(t)), text)
    option = value_or_none(lambda t: Option.parse(str(t)), text)

    assert precision is None or Precision.parse(str(precision)) == precision
    assert option is None or Option.parse(str(option)) == option


recoveries = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("context_length", "reduction", "shots", "views", "steps"), json_values),
        **dict.fromkeys(("adapter_bits", "blend", "distillation", "teacher"), json_values),
        "learning_rate_multiplier": json_values,
        **dict.fromkeys(("class_position", "class_specific", "other"), json_values),
    },
)
plans = st.dictionaries(st.text(max_size=5), precision_texts | json_values, max_size=3)
configurations = st.one_of(
    json_values,
    st.fixed_dictionaries({"plan": plans | json_values, "recovery": recoveries | json_values}),
    st.fixed_dictionaries({"plan": st.just({"a": "w4a8"}), "recovery": recoveries}),
)


def check_configuration(content: object) -> None:
    configuration = value_or_none(
        lambda c: Configuration.from_dict(cast("dict[str, object]", c)), content
    )
    if isinstance(configuration, Configuration):
        assert Configuration.from_dict(json.loads(canonical_json(configuration.to_dict()))) == (
            configuration
        )
        assert isinstance(configuration.plan, Plan)


@given(content=configurations)
@QUICK
def test_content_is_a_configuration_or_is_refused(content: object) -> None:
    check_configuration(content)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(content=configurations)
@LONG
def test_much_content_is_a_configuration_or_is_refused(content: object) -> None:
    check_configuration(content)


results = json_values | st.fixed_dictionaries(
    {"seconds": json_values, "worker": json_values},
    optional=dict.fromkeys(("values", "metrics", "cause", "message", "traceback"), json_values),
)


@given(content=results)
@QUICK
def test_json_is_a_result_or_no_result(content: object) -> None:
    try:
        result = from_json(json.dumps(content))
    except ValueError:
        return
    assert from_json(to_json(result)) == result


@given(text=odd_text | st.text() | st.from_regex(r"[0-9]{1,20}(\.[0-9]{1,3})? ?[kKmMgG]?i?[bB]?"))
@QUICK
def test_a_text_is_a_size_or_no_size(text: str) -> None:
    nbytes: object = 0
    refusal = ""
    try:
        nbytes = parse_nbytes(text)
    except ValueError as error:
        refusal = str(error)

    assert refusal.isprintable()
    assert isinstance(nbytes, int)
    assert nbytes >= 0
