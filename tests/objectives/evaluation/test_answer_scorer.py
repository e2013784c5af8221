import re
import string
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitfront.errors import InvalidMetric, SpecError, UnavailableDevice
from bitfront.layers import Tower
from bitfront.plan import Configuration, Plan
from bitfront.precision import Precision
from bitfront.reference.digit_llava import END, VOCABULARY, load_llava
from bitfront.spec import DataSpec, JobSpec, QuantizerSpec
from bitfront.vlm import GenerativeModel, PlanSwitch
from bitfront.vlm.loaders.reference import digit_llava_model
from objectives.data.answers import is_right, normalise, parse
from objectives.data.decoded import DecodedImages
from objectives.data.questions import QuestionSplit, QuestionTask, load_questions
from objectives.data.reference_questions import ReferenceQuestions
from objectives.data.split_name import SplitName
from objectives.evaluation.answer_scorer import AnswerScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.answering import AnsweringFamily
from objectives.evaluation.scorer import ScoringContext
from objectives.execution.feature_store import FeatureStore
from objectives.execution.stopwatch import Stopwatch
from objectives.profiling.calibration import Ranges, calibrate

QUANTIZER = QuantizerSpec(scale_search=False)
COUNT = 40
DATA: dict[str, object] = {
    "source": "reference",
    "samples": {"calibration": 8, "tuning": 1, "selection": COUNT, "test": 6},
    "batch_size": 16,
    "answer_tokens": 6,
}
YES_OR_NO = r"^(yes|no)$"


def job(**changes: object) -> JobSpec:
    content: dict[str, object] = {
        "study": "scorer",
        "model": {"source": "reference", "name": "digit-llava", "device": "cpu"},
        "data": DATA,
        "quantizer": QUANTIZER,
    }
    return JobSpec.model_validate({**content, **changes})


def data(**changes: object) -> DataSpec:
    return DataSpec.model_validate({**DATA, **changes})


def fresh() -> GenerativeModel:
    return digit_llava_model(load_llava())


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return fresh()


@pytest.fixture(scope="module")
def task(model: GenerativeModel) -> QuestionTask:
    return load_questions(data(), model)


@pytest.fixture(scope="module")
def ranges(model: GenerativeModel, task: QuestionTask) -> Ranges:
    return calibrate(task, (1.0,))


def judged(
    task: QuestionTask,
    ranges: Ranges,
    plans: Sequence[Plan],
    *,
    split: SplitName = SplitName.SELECTION,
    cache_nbytes: int = 1 << 30,
) -> list[dict[str, float]]:
    """The figures of plans, one after the other."""
    model = fresh()
    switch = PlanSwitch(model, QUANTIZER, ranges)
    features = FeatureStore("", None, cache_nbytes)
    watch = Stopwatch(model.device)
    context = ScoringContext(job(), switch, watch, features, cache_nbytes)
    scorer = AnswerScorer(replace(task, model=model), context)
    return [scorer.figures(Configuration(plan), split) for plan in plans]


def uniform(model: GenerativeModel, weight_bits: int, activation_bits: int = 8) -> Plan:
    names = [layer.name for layer in model.layers]
    return Plan.uniform(names, Precision(weight_bits, activation_bits))


class Oracle:
    """What a plan does to the questions, one by one: no batches, no state, no cache."""

    def __init__(self, task: QuestionTask, ranges: Ranges, plan: Plan, limit: int) -> None:
        self.full, self.model = fresh(), fresh()
        PlanSwitch(self.model, QUANTIZER, ranges).to(plan)
        split = task.split(SplitName.SELECTION)
        self.texts: list[str | None] = [None] * len(split)
        losses: list[float] = []
        divergences: list[float] = []
        for number, places in enumerate(split.batches):
            batch = split.read(number)
            for row, place in enumerate(places.tolist()):
                one = batch.pick(slice(row, row + 1))
                assert one.pixels is not None
                self.texts[place] = self.decode(one.prompts, one.pixels, limit)
                for step, token in enumerate(one.answers[0].tolist()):
                    tokens = torch.cat([one.prompts, one.answers[:, :step]], dim=1)
                    full = self.next(self.full, tokens, one.pixels).double().log_softmax(dim=-1)
                    given = self.next(self.model, tokens, one.pixels).double().log_softmax(dim=-1)
                    losses.append(-float(given[token]))
                    part = functional.kl_div(given, full, log_target=True, reduction="sum")
                    divergences.append(float(part))
        self.loss_nats = sum(losses) / len(losses)
        self.divergence = sum(divergences) / len(divergences)

    @torch.no_grad()
    def next(self, model: GenerativeModel, tokens: Tensor, pixels: Tensor) -> Tensor:
        found = model.module(input_ids=tokens, pixel_values=pixels, use_cache=False)
        logits: Tensor = found.logits[0, -1]
        return logits

    def decode(self, prompt: Tensor, pixels: Tensor, limit: int) -> str | None:
        """The text up to the end; None without an end."""
        tokens, words = prompt, list[str]()
        for _ in range(limit):
            token = int(self.next(self.model, tokens, pixels).argmax())
            if token == END:
                return " ".join(words)
            words.append(VOCABULARY[token])
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
        return None

    def answers(self, pattern: str | None) -> list[str | None]:
        """The answers in the texts; a text without one is None."""
        if pattern is None:
            return [text or None for text in self.texts]
        matches = [None if text is None else re.search(pattern, text) for text in self.texts]
        return [None if match is None else match.group(1) for match in matches]


@pytest.mark.parametrize("bits", [(2, 8), (4, 4)], ids=str)
@pytest.mark.parametrize(
    ("pattern", "limit"), [(None, 6), (None, 2), (YES_OR_NO, 6), (r"^(\w+) \w+$", 6)]
)
def test_the_figures_are_those_of_answering_one_by_one(
    bits: tuple[int, int],
    pattern: str | None,
    limit: int,
    model: GenerativeModel,
    task: QuestionTask,
    ranges: Ranges,
) -> None:
    plan = uniform(model, *bits)
    asked = replace(task, answer_pattern=pattern, answer_tokens=limit)

    (figures,) = judged(asked, ranges, [plan])

    oracle = Oracle(task, ranges, plan, limit)
    answers = oracle.answers(pattern)
    accepted = task.split(SplitName.SELECTION).accepted
    wrong = [answer not in right for answer, right in zip(answers, accepted, strict=True)]
    assert figures["error"] == pytest.approx(sum(wrong) / COUNT, abs=1e-12)
    assert figures["unparsed"] == answers.count(None) / COUNT
    assert figures["loss_nats"] == pytest.approx(oracle.loss_nats, rel=1e-4)
    assert figures["divergence"] == pytest.approx(oracle.divergence, rel=1e-3, abs=1e-9)


def test_the_questions_have_answers_of_every_kind(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    """What the other tests look at occurs: right, wrong and cut answers, of several lengths."""
    short = replace(task, answer_tokens=2)

    plans = [uniform(model, 8), uniform(model, 2)]
    (good, bad), (cut, _) = (judged(kind, ranges, plans) for kind in (task, short))

    assert good["error"] < bad["error"] <= 1
    assert cut["unparsed"] > 0
    assert cut["error"] > good["error"]
    assert good["loss_nats"] < bad["loss_nats"]
    assert 0 < good["divergence"] < bad["divergence"]
    lengths = [len(answer) for answer in task.split(SplitName.SELECTION).answers]
    assert set(lengths) == {2, 3}


def test_full_precision_does_not_diverge_from_itself(task: QuestionTask, ranges: Ranges) -> None:
    (figures,) = judged(task, ranges, [Plan(())])

    assert figures["divergence"] == 0.0


class Relabelled(ReferenceQuestions):
    """Digit questions whose first answer is wrong and whose second one is right, oddly written."""

    def answers(self, index: int) -> Sequence[str]:
        (right,) = super().answers(index)
        wrong = "three" if right != "three" else "four"
        return (wrong, f" {right.upper()}.  ", "nine nine")


def with_source(
    task: QuestionTask, model: GenerativeModel, kind: type[ReferenceQuestions]
) -> QuestionTask:
    """The task with other answers to the same questions of its selection split."""
    spec = data(prompt="<image> {}")
    source = kind("selection", COUNT, spec.seed)
    split = QuestionSplit(SplitName.SELECTION, model, source, range(COUNT), spec, DecodedImages())
    return replace(task, splits={**task.splits, SplitName.SELECTION: split})


def test_every_accepted_answer_is_right(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    relabelled = with_source(task, model, Relabelled)

    plans = [Plan(()), uniform(model, 4)]
    plain, more = (judged(kind, ranges, plans) for kind in (task, relabelled))

    for one, other in zip(plain, more, strict=True):
        assert one["error"] == other["error"] < 1
        assert one["unparsed"] == other["unparsed"]
        assert one["loss_nats"] < other["loss_nats"]  # the first answer is what is taught


def test_a_pattern_without_a_match_makes_every_answer_wrong_and_unparsed(
    task: QuestionTask, ranges: Ranges
) -> None:
    (figures,) = judged(replace(task, answer_pattern="no such answer"), ranges, [Plan(())])

    assert (figures["error"], figures["unparsed"]) == (1.0, 1.0)


class Unanswerable(ReferenceQuestions):
    """Digit questions that nothing is right for."""

    def answers(self, index: int) -> Sequence[str]:
        return tuple("nine nine nine" for _ in super().answers(index))


def test_a_wrong_answer_is_not_unparsed(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    (figures,) = judged(with_source(task, model, Unanswerable), ranges, [Plan(())])

    assert (figures["error"], figures["unparsed"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("text", "pattern", "answer"),
    [
        ("Yes.", None, "yes"),
        ("  a  red\nBIRD ", None, "a red bird"),
        ("", None, None),
        (" . ", None, None),
        ("The answer is B.", r"answer is ([A-D])", "b"),
        ("The answer is B.", r"[A-D]", "b"),
        ("The answer is E.", r"answer is ([A-D])\b", None),
        ("A or B", r"([A-D])$", "b"),
        ("yes", r"(no)|yes", None),
        ("straße", None, "strasse"),
    ],
)
def test_answers_are_read_from_texts(text: str, pattern: str | None, answer: str | None) -> None:
    assert parse(text, pattern) == answer


def test_an_answer_is_right_if_some_accepted_one_reads_the_same() -> None:
    assert is_right("a red bird", ["dog", "A  red bird!"])
    assert not is_right("a red", ["a red bird"])
    assert not is_right(None, ["", "none"])
    for edge in string.punctuation:
        assert normalise(f"{edge}yes{edge} ") == "yes"


def sequence(model: GenerativeModel) -> list[Plan]:
    """Plans that change vision, projector, language and the tied layer, and returns."""
    base = uniform(model, 4)
    plans = [base]
    for tower in (Tower.VISION, Tower.PROJECTOR, Tower.LANGUAGE):
        names = [layer.name for layer in model.layers if layer.tower is tower]
        plans += [Plan.of({**dict(base), name: Precision(2, 4)}) for name in names[-4:-1]]
    tied = Plan.of({**dict(base), model.layers[-1].name: Precision(3, 8)})
    return [*plans, tied, Plan(()), base, tied, plans[2]]


def test_caches_change_no_bit(model: GenerativeModel, task: QuestionTask, ranges: Ranges) -> None:
    plans = sequence(model)

    without = judged(task, ranges, plans, cache_nbytes=0)

    assert judged(task, ranges, plans) == without
    assert judged(task, ranges, plans, cache_nbytes=400_000) == without
    alone = [judged(task, ranges, [plan])[0] for plan in plans[::4]]
    assert alone == without[::4]


def test_a_course_shows_the_divergences_of_a_score_and_changes_no_bit(
    model: GenerativeModel, ranges: Ranges
) -> None:
    task = load_questions(data(batch_size=1), model)
    own = fresh()
    switch = PlanSwitch(own, QUANTIZER, ranges)
    context = ScoringContext(job(), switch, Stopwatch(own.device), FeatureStore("", None), 1 << 30)
    scorer = AnswerScorer(replace(task, model=own), context)
    for bits in (4, 3):
        plan = uniform(model, bits)

        reached = list(scorer.course(plan, SplitName.SELECTION))
        score = scorer.score(Configuration(plan), SplitName.SELECTION)

        assert dict(score.figures) == judged(task, ranges, [plan], cache_nbytes=0)[0]
        assert score.samples is not None
        assert reached
        for one in reached:
            assert len(set(one.places.tolist())) == len(one.places) < len(score.samples)
            shown = score.samples.divergence[one.places.numpy()]
            assert one.divergence.numpy() == pytest.approx(shown, rel=1e-5, abs=1e-6)


def test_batches_do_not_matter(model: GenerativeModel, task: QuestionTask, ranges: Ranges) -> None:
    plans = [uniform(model, 4), uniform(model, 3)]
    whole = judged(task, ranges, plans)

    one_by_one = load_questions(data(batch_size=1), model)

    for figures, others in zip(whole, judged(one_by_one, ranges, plans), strict=True):
        assert figures == pytest.approx(others, rel=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        {"class_position": ["front"]},
        {"class_specific": [True, False]},
        {"teacher": ["prompt"]},
        {"views": [2]},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_needs_classes_is_refused(
    setting: dict[str, object], task: QuestionTask, ranges: Ranges
) -> None:
    (name,) = setting

    with pytest.raises(SpecError, match=f"a recovery's {name} is for models that tell"):
        Evaluator(job(space={"recovery": setting}), AnsweringFamily(task), ranges)


@pytest.mark.parametrize(
    "change",
    [{"objectives": ["error", "token_s"]}, {"constraints": {"max_latency_s": 1.0}}],
    ids=["objective", "constraint"],
)
def test_a_time_without_a_target_is_refused(
    change: dict[str, object], task: QuestionTask, ranges: Ranges
) -> None:
    with pytest.raises(UnavailableDevice, match="measured in what it is built for: set target: on"):
        Evaluator(job(**change), AnsweringFamily(task), ranges)


def test_figures_that_are_not_finite_are_refused(task: QuestionTask, ranges: Ranges) -> None:
    model = fresh()
    evaluator = Evaluator(job(), AnsweringFamily(replace(task, model=model)), ranges)
    norm = model.module.get_parameter("model.language_model.norm.weight")
    norm.data.fill_(float("nan"))

    with pytest.raises(InvalidMetric, match="came out as nan"):
        evaluator.evaluate(Configuration(Plan(())))


def test_an_evaluation_has_the_judges_figures_and_the_costs(
    model: GenerativeModel, task: QuestionTask, ranges: Ranges
) -> None:
    plan = uniform(model, 4)
    evaluator = Evaluator(job(), AnsweringFamily(replace(task, model=fresh())), ranges)

    evaluation = evaluator.evaluate(Configuration(plan))

    (figures,) = judged(task, ranges, [plan])
    assert figures.items() <= evaluation.metrics.items()
    assert evaluation.values["error"] == figures["error"]
    assert evaluation.values["nbytes"] == sum(
        value for name, value in evaluation.metrics.items() if name.startswith("nbytes.")
    )
