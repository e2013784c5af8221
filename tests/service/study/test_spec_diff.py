"""What a person is told of a study that is resumed with something else."""

from bitfront.plan import canonical_json
from service.study.spec_diff import accept_spec, result_differences
from storage.records import Difference
from storage.store import Store
from tests.support.store_samples import finished, job, running


def test_a_changed_part_of_the_model_is_named_in_place_of_its_hash() -> None:
    before = canonical_json({"size": {"height": 24}, "image_mean": [0.5], "resample": 3})
    after = canonical_json({"size": {"height": 24}, "image_mean": [0.1], "do_pad": True})
    found = {"model": "m2", "weights": "w", "preprocessing": after, "tokenizer": "t2"}
    differences = [
        Difference("device", "cpu", "cuda"),
        Difference("model", "m1", "m2"),
        Difference("preprocessing", before, after),
        Difference("selection", "s1", "s2"),
        Difference("tokenizer", "t1", "t2"),
    ]

    assert result_differences(differences, {**found, "selection": "s2"}) == (
        "preprocessing.do_pad was None, is True",
        "preprocessing.image_mean was [0.5], is [0.1]",
        "preprocessing.resample was 3, is None",
        "selection was s1, is s2",
        "tokenizer was t1, is t2",
    )


def test_a_model_whose_settings_were_not_recorded_yet_is_explained() -> None:
    found = {"model": "m2", "weights": "w", "tokenizer": "t"}

    (line,) = result_differences([Difference("model", "w", "m2")], found)

    assert "did not record the tokenizer and the preprocessing" in line
    assert result_differences([Difference("model", "v", "m2")], found) == ("model was v, is m2",)


def test_only_a_change_of_results_outdates_trials(store: Store) -> None:
    lease = running(store)
    finished(store, lease, 0, 0.5, 8)

    for spec in (job(stop={"trials": 3}), job(search={"sampler": "random"})):
        accept_spec(store, lease, spec, accept_changes=True)
        assert store.trials("digits")[0].values == {"error": 0.5, "nbytes": 8}
        assert store.best("digits") is not None
    accept_spec(store, lease, job(search={"seed": 1}), accept_changes=True)

    assert store.best("digits") is None
