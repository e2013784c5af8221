"""P4Q for a generative model: training on kept features, judging, and what is stored."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitfront.errors import InvalidModel
from bitfront.layers import Tower
from bitfront.plan import Configuration, Plan, Recovery
from bitfront.precision import Precision
from bitfront.reference.digit_llava import load_llava
from bitfront.spec import JobSpec, QuantizerSpec
from bitfront.vlm import GenerativeModel, PlanSwitch, QuestionBatch
from bitfront.vlm.loaders.reference import digit_llava_model
from objectives.cost.costs import bit_operations
from objectives.data.answers import normalise
from objectives.data.questions import QuestionTask, load_questions
from objectives.data.split_name import SplitName
from objectives.evaluation.answer_scorer import AnswerScorer
from objectives.evaluation.evaluator import Evaluator
from objectives.evaluation.families.answering import AnsweringFamily
from objectives.profiling.calibration import Ranges, calibrate
from objectives.recovery.adapter import AdapterShape, StoredAdapter
from objectives.recovery.answer_training import AnswerRecovered, AnswerTraining
from objectives.recovery.checkpointed_training import advance

STATIC = QuantizerSpec(scale_search=False)
BOTH = Recovery(context_length=3, reduction=4, blend=0.5, distillation=2.0, steps=6)
PROMPT = replace(BOTH, reduction=0).canonical
ADAPTER = replace(BOTH, context_length=0)
SAMPLES = {"calibration": 16, "tuning": 48, "selection": 64, "test": 6}


def job(**changes: object) -> JobSpec:
    content: dict[str, object] = {
        "study": "answers",
        "model": {"source": "reference", "name": "digit-llava", "device": "cpu"},
        "data": {"source": "reference", "samples": SAMPLES, "batch_size": 16, "answer_tokens": 6},
        "quantizer": STATIC,
        "space": {"recovery": {}},
    }
    return JobSpec.model_validate({**content, **changes})


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return digit_llava_model(load_llava())


@pytest.fixture(scope="module")
def task(model: GenerativeModel) -> QuestionTask:
    return load_questions(job().data, model)


@pytest.fixture(scope="module")
def ranges(model: GenerativeModel, task: QuestionTask) -> Ranges:
    return calibrate(task, (1.0,))


@pytest.fixture
def evaluator(model: GenerativeModel, task: QuestionTask, ranges: Ranges) -> Evaluator:
    return Evaluator(job(), AnsweringFamily(task), ranges)


def uniform(model: GenerativeModel, weight_bits: int, activation_bits: int = 8) -> Plan:
    names = [layer.name for layer in model.layers]
    return Plan.uniform(names, Precision(weight_bits, activation_bits))


def begun(
    evaluator: Evaluator, recovery: Recovery, bits: tuple[int, int] = (3, 8)
) -> AnswerTraining:
    assert isinstance(evaluator.scorer, AnswerScorer)
    assert isinstance(evaluator.model, GenerativeModel)
    return evaluator.scorer.begin(Configuration(uniform(evaluator.model, *bits), recovery))


def trained(evaluator: Evaluator, recovery: Recovery, bits: int = 3) -> dict[str, Tensor]:
    training = begun(evaluator, recovery, (bits, 8))
    advance(training, recovery.steps)
    return training.stored()


@pytest.mark.parametrize("bits", [(3, 8), (4, 4)])
def test_gradients_reach_context_and_adapter_through_the_quantized_decoder(
    evaluator: Evaluator, bits: tuple[int, int]
) -> None:
    training = begun(evaluator, BOTH, bits)
    training.step()  # before it, the adapter's first product has none: the second is zero
    training.quantize_adapter()
    assert training.context is not None
    assert training.adapter is not None
    parameters = [*training.context.parameters(), *training.adapter.parameters()]

    loss = torch.stack(list(training.losses(torch.arange(32)))).sum()

    for gradient in torch.autograd.grad(loss, parameters):
        assert gradient.isfinite().all()
        assert (gradient != 0).float().mean() > 0.5


def test_before_training_the_adapter_changes_nothing(
    evaluator: Evaluator, task: QuestionTask
) -> None:
    model, split = evaluator.model, task.split(SplitName.TUNING)
    assert isinstance(model, GenerativeModel)

    parts = list(begun(evaluator, ADAPTER).losses(torch.arange(48)))

    def logits() -> Tensor:
        with torch.no_grad():
            found = [model.answer_logits(split.read(n)) for n in range(len(split.batches))]
        return torch.cat([rows.flatten(0, 1) for rows in found])

    student = logits()
    evaluator.switch.clear()
    teacher = logits()
    answers = torch.cat([split.answers[int(place)] for part in split.batches for place in part])
    expected = functional.cross_entropy(student, answers) + 2.0 * functional.cross_entropy(
        student, teacher.softmax(dim=-1)
    )
    torch.testing.assert_close(torch.stack(parts).sum(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recovery", [BOTH, PROMPT, ADAPTER])
def test_no_step_runs_the_vision_tower_or_the_projector(
    evaluator: Evaluator, recovery: Recovery
) -> None:
    training = begun(evaluator, recovery)
    towers = {layer.name: layer.tower for layer in evaluator.model.layers}
    ran: set[Tower] = set()

    with evaluator.model.watch_inputs(lambda layer, _: ran.add(towers[layer])):
        training.step()

    assert ran == {Tower.LANGUAGE}


@pytest.mark.parametrize("recovery", [BOTH, PROMPT, ADAPTER])
def test_the_loss_falls(evaluator: Evaluator, recovery: Recovery) -> None:
    training = begun(evaluator, replace(recovery, steps=30), (2, 8))
    everything = torch.arange(48)

    def loss() -> float:
        with torch.no_grad():
            return float(torch.stack(list(training.losses(everything))).sum())

    before = loss()
    advance(training, 30)

    assert loss() < 0.9 * before


@pytest.mark.parametrize("recovery", [BOTH, PROMPT, ADAPTER])
@pytest.mark.parametrize("ended", [0, 2, 3, 5])
def test_a_training_put_back_goes_on_to_the_same_bits(
    evaluator: Evaluator, recovery: Recovery, ended: int
) -> None:
    whole = trained(evaluator, recovery)
    first = begun(evaluator, recovery)
    advance(first, ended)

    second = begun(evaluator, recovery)
    second.load_state_dict(first.state_dict())
    advance(second, recovery.steps)

    assert all(torch.equal(second.stored()[name], whole[name]) for name in whole)


@pytest.mark.parametrize("recovery", [BOTH, PROMPT, ADAPTER])
@pytest.mark.parametrize("bits", [(3, 8), (2, 8)])
def test_figures_are_those_of_the_stored_recovery_on_whole_questions(
    evaluator: Evaluator,
    task: QuestionTask,
    ranges: Ranges,
    recovery: Recovery,
    bits: tuple[int, int],
) -> None:
    assert isinstance(evaluator.model, GenerativeModel)
    configuration = Configuration(uniform(evaluator.model, *bits), recovery)

    figures = evaluator.evaluate(configuration).metrics

    other = copy_of(evaluator.model, ranges, configuration.plan)
    loss, error = _by_hand(other, task, evaluator.scorer.stored(configuration), recovery)
    assert figures["loss_nats"] == pytest.approx(loss, rel=1e-3)
    assert figures["error"] == error
    plain = evaluator.evaluate(Configuration(configuration.plan)).metrics
    assert figures["loss_nats"] != plain["loss_nats"]


def copy_of(model: GenerativeModel, ranges: Ranges, plan: Plan) -> GenerativeModel:
    """A model of its own with the plan on."""
    other = digit_llava_model(load_llava())
    assert [x.name for x in other.layers] == [x.name for x in model.layers]
    PlanSwitch(other, STATIC, ranges).to(plan)
    return other


def _by_hand(
    model: GenerativeModel, task: QuestionTask, stored: Mapping[str, Tensor], recovery: Recovery
) -> tuple[float, float]:
    """Loss and error on the selection split, question by question, from pixels to text."""
    split = task.split(SplitName.SELECTION)
    adapter = None
    if recovery.reduction:
        width = model.feature_width
        shape = AdapterShape.of(recovery, width, STATIC, is_residual=True)
        adapter = StoredAdapter(stored, shape)
    context = stored["context"].float() if recovery.context_length else None
    losses, wrong = [], 0
    for number, places in enumerate(split.batches):
        batch = split.read(number)
        for row, place in enumerate(places.tolist()):
            one = batch.pick(slice(row, row + 1))
            with torch.no_grad():
                features = model.image_features(one)
                assert features is not None
                if adapter is not None:
                    features = adapter(features)
                logits = model.answer_logits(one, features=features, context=context)[0]
                losses.append(functional.cross_entropy(logits, one.answers[0], reduction="none"))
                written = model.generate(
                    one, task.answer_tokens, features=features, context=context
                )[0]
            said = normalise(model.decode(written)) if model.has_ended(written) else None
            wrong += said not in {normalise(answer) for answer in split.accepted[place]}
    return float(torch.cat(losses).mean()), wrong / len(split)


def test_an_answer_is_written_with_the_recovery(evaluator: Evaluator, task: QuestionTask) -> None:
    assert isinstance(evaluator.model, GenerativeModel)
    assert isinstance(evaluator.scorer, AnswerScorer)
    configuration = Configuration(uniform(evaluator.model, 2), replace(BOTH, steps=1))
    stored = evaluator.scorer.stored(configuration)
    # A context that is far from every word turns answers around.
    far = torch.full_like(stored["context"], 40.0)
    evaluator.scorer.keep(configuration, {**stored, "context": far})
    question = "how many sevens"

    written = evaluator.scorer.answer(configuration, question, None)

    prompt = task.split(SplitName.TEST).prepare(question, None)
    batch = QuestionBatch(prompt.tokens[None], torch.zeros(1, 1, dtype=torch.int64), None, None)
    evaluator.switch.to(configuration.plan)
    (tokens,) = evaluator.model.generate(batch, task.answer_tokens, context=far.float())
    (plain,) = evaluator.model.generate(batch, task.answer_tokens)
    assert written == evaluator.model.decode(tokens)
    assert written != evaluator.model.decode(plain)


def test_the_projectors_output_is_kept_by_the_plan_of_vision_and_projector(
    evaluator: Evaluator,
) -> None:
    assert isinstance(evaluator.model, GenerativeModel)
    language = [x.name for x in evaluator.model.layers if x.tower is Tower.LANGUAGE]
    first = uniform(evaluator.model, 3)
    second = Plan.of({**dict(first), language[0]: Precision(8, 8)})
    other = Plan.of({**dict(first), evaluator.model.layers[0].name: Precision(8, 8)})

    hits = [
        evaluator.evaluate(Configuration(plan, ADAPTER)).metrics["hits.selection_projected"]
        for plan in (first, second, other)
    ]

    assert hits[1] == 1
    seen: list[str] = []
    with evaluator.model.watch_inputs(lambda layer, _: seen.append(layer)):
        evaluator.evaluate(Configuration(second, replace(ADAPTER, steps=2)))
    towers = {layer.name: layer.tower for layer in evaluator.model.layers}
    assert {towers[layer] for layer in seen} == {Tower.LANGUAGE}


def test_shots_take_the_first_questions_of_each_answer(
    evaluator: Evaluator, task: QuestionTask
) -> None:
    whole, few = begun(evaluator, ADAPTER), begun(evaluator, replace(ADAPTER, shots=2))
    firsts = [normalise(answers[0]) for answers in task.split(SplitName.TUNING).accepted]

    def questions(training: AnswerTraining) -> int:
        return sum(len(taught.questions) for taught in training._batches)

    assert questions(whole) == 48
    assert questions(few) == sum(min(2, firsts.count(answer)) for answer in set(firsts))


def test_a_recovery_costs_what_it_stores(evaluator: Evaluator) -> None:
    assert isinstance(evaluator.model, GenerativeModel)
    plan = uniform(evaluator.model, 3)

    bare = evaluator.nbytes(Configuration(plan))
    for recovery in (BOTH, PROMPT, ADAPTER, replace(BOTH, adapter_bits=4)):
        whole = evaluator.nbytes(Configuration(plan, recovery))
        stored = trained(evaluator, replace(recovery, steps=2))
        assert sum(whole.values()) - sum(bare.values()) == sum(t.nbytes for t in stored.values())


def test_the_adapter_and_the_prompts_positions_are_counted(evaluator: Evaluator) -> None:
    model = evaluator.model
    assert isinstance(model, GenerativeModel)
    plan = uniform(model, 4)
    bare = bit_operations(model, Configuration(plan))

    adapter = bit_operations(model, Configuration(plan, ADAPTER)) - bare
    prompt = bit_operations(model, Configuration(plan, PROMPT)) - bare

    hidden = model.feature_width // 4
    assert adapter == 64 * 2 * hidden * model.feature_width * model.tile_tokens
    multiplied = [x for x in model.layers if x.tower is Tower.LANGUAGE and x.kind != "embedding"]
    assert prompt == 32 * 3 * sum(layer.weights for layer in multiplied)


@pytest.mark.parametrize("name", ["context", "adapter.up.bias"])
def test_a_state_that_lacks_a_tensor_is_refused(evaluator: Evaluator, name: str) -> None:
    assert isinstance(evaluator.model, GenerativeModel)
    stored = copy.copy(trained(evaluator, replace(BOTH, steps=2)))
    del stored[name]

    with pytest.raises(InvalidModel, match=name.rpartition(".")[2]):
        AnswerRecovered.load(stored, BOTH, STATIC, evaluator.model)


def test_p4q_wins_back_loss_at_two_bits() -> None:
    samples = {"calibration": 64, "tuning": 512, "selection": 512, "test": 6}
    quantizer = {"rounding": "nearest"}  # the other methods leave little to win back
    data = {"source": "reference", "samples": samples}
    evaluator = Evaluator.from_spec(job(data=data, quantizer=quantizer))
    assert isinstance(evaluator.model, GenerativeModel)
    plan = uniform(evaluator.model, 2)
    recovery = replace(BOTH, steps=80)

    plain = evaluator.evaluate(Configuration(plan)).metrics
    won = evaluator.evaluate(Configuration(plan, recovery)).metrics

    assert won["error"] < plain["error"]
    assert won["divergence"] < 0.8 * plain["divergence"]
