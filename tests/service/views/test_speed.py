"""What a build says of times."""

from service.views.speed import speed_cell, speed_pairs, time_cell


def speedup(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median}


def reference(dtype: str, first: float, token: float) -> dict[str, object]:
    return {
        "dtype": dtype,
        "latency_s": {"1": 0.5},
        "token_s": 0.02,
        "speedup": {"1": speedup(first), "token": speedup(token)},
    }


FOUND = {
    "latency_s": {"1": 0.25},
    "token_s": 0.01,
    "references": [reference("float32", 0.5, 2.0), reference("bfloat16", 1.0, 3.0)],
}
ALONE = {"latency_s": {"1": 0.25}, "token_s": None}


def test_the_fastest_form_of_full_precision_is_what_counts() -> None:
    pairs = speed_pairs(FOUND, "openvino")

    assert pairs == [
        ("latency", "250 ms at batch 1, 10 ms a token"),
        ("float32", "500 ms at batch 1, 20 ms a token"),
        ("bfloat16", "500 ms at batch 1, 20 ms a token"),
        ("speed", "at batch 1 slower than float32, 0.5 (0.45 to 0.55) times as fast"),
        ("speed", "writing a token 2 (1.8 to 2.2) times as fast as float32"),
    ]
    assert (time_cell(FOUND), speed_cell(FOUND)) == ("10 ms a token", "2 x float32")


def test_what_was_not_timed_beside_full_precision_says_its_own_times() -> None:
    assert speed_pairs(ALONE, "onnx") == [("latency", "250 ms at batch 1")]
    assert (time_cell(ALONE), speed_cell(ALONE)) == ("250 ms", "")


def test_why_it_was_not_timed_is_said() -> None:
    pairs = dict(speed_pairs({**ALONE, "untimed": "No space left on device"}, "packed"))

    assert pairs["speed"] == (
        "the model at full precision was not timed beside it: No space left on device"
    )
