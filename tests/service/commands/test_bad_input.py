"""Malformed job files and queries, each with the exact sentence that a person reads."""

from pathlib import Path

import pytest

from bitfront.errors import SpecError
from bitfront.job import load_job
from bitfront.objective import Objective

WHOLE = """\
study: first
model:
  source: reference
data:
  source: reference
"""

TOP_KEYS = (
    "study, model, data, quantizer, space, partition, profile, objectives, constraints, "
    "search, stop, tracking, resources, target, context_tokens"
)

# What is written below a whole job (so its first line is line 6), and what is said of it.
ADDITIONS = {
    "a duplicate key": (
        "study: second",
        "line 6: study is given a second time (first on line 1): keep one of them",
    ),
    "a misspelt key": (
        "space:\n  weight_bit: [2]",
        "line 7: space.weight_bit is not a known key: did you mean weight_bits?",
    ),
    "an unknown key in a section": (
        "partition:\n  colour: red",
        "line 7: partition.colour is not a known key: "
        "the keys of partition are granularity, depth, threshold",
    ),
    "an unknown key at the top": (
        "zzz: 1",
        f"line 6: zzz is not a known key: the keys at the top are {TOP_KEYS}",
    ),
    "an unknown runtime": (
        "target: tensorrt",
        "line 6: target: 'tensorrt' is not possible: write any, torch, onnxruntime, openvino, "
        "compressed-tensors or gguf",
    ),
    "a group that the runtime has no kernel for": (
        "target: onnxruntime\nspace:\n  groups: [32]",
        "line 8: space.groups: onnxruntime has no kernel for w2a8g32: the nearest that it has is "
        "w2a8 or w2a16g32 or w2a16, or write quantizer.activations: grouped, or leave target out",
    ),
    "a width that the runtime has no kernel for": (
        "target: openvino\nspace:\n  weight_bits: [3]",
        "line 8: space.weight_bits: openvino has no kernel for w3a8: the nearest that it has is "
        "w4a8 or w4a16 or w4a16g16, or leave target out",
    ),
    "ranges that the runtime has no kernel for": (
        "target: onnxruntime\nquantizer:\n  activations: dynamic",
        "line 8: quantizer.activations: onnxruntime has no kernel for w2a8 with dynamic ranges of "
        "inputs: write static or grouped, or search w2a16 or w2a16g16, or leave target out",
    ),
    "inputs in groups of 4 bits, which the runtime has no kernel for": (
        "target: openvino\nquantizer: {activations: grouped}\n"
        "space: {weight_bits: [4], activation_bits: [4]}",
        "line 7: quantizer.activations: openvino has no kernel for w4a4 with grouped ranges of "
        "inputs: write static, or search w4a8 or w4a8g32 or w4a16 or w4a16g16, or leave target "
        "out",
    ),
    "weights in smaller groups than inputs": (
        "target: onnxruntime\nquantizer: {activations: grouped, activation_group: 128}\n"
        "space: {weight_bits: [4], activation_bits: [8], groups: [64]}",
        "line 7: quantizer.activation_group: onnxruntime has no kernel for w4a8g64 beside inputs "
        "in groups of 128: write 32, or search w4a8g128 or w4a8 or w4a16g64 or w4a16, or leave "
        "target out",
    ),
    "a latency in a runtime that computes in floats": (
        "target: torch\nobjectives: [error, latency_s]",
        "line 7: objectives: latency_s is measured in onnxruntime and openvino, and what is built "
        "for torch multiplies in floating point at every precision: put bit_operations in place of "
        "latency_s",
    ),
    "a bit width out of range": (
        "space:\n  weight_bits: [2, 7]",
        "line 7: space.weight_bits: 7 is not possible: "
        "weight bits must be among 2, 3, 4, 5, 6, 8, 16",
    ),
    "a bit width in words, on a line of its own": (
        "space:\n  weight_bits:\n  - 2\n  - four",
        "line 9: space.weight_bits: 'four' is not possible: "
        "weight bits must be among 2, 3, 4, 5, 6, 8, 16",
    ),
    "an activation width out of range": (
        "space:\n  activation_bits: [5]",
        "line 7: space.activation_bits: 5 is not possible: "
        "activation bits must be among 4, 6, 8, 16",
    ),
    "an unknown target of rounding": (
        "quantizer:\n  target: layer",
        "line 7: quantizer.target: 'layer' is not possible: write own, output, residual or auto",
    ),
    "an unknown kind of input ranges": (
        "quantizer:\n  ranges: best",
        "line 7: quantizer.ranges: 'best' is not possible: write measured, searched or auto",
    ),
    "an empty search space": (
        "space:\n  weight_bits: []",
        "line 7: space.weight_bits is empty: there is nothing to search",
    ),
    "a value twice": (
        "space:\n  weight_bits: [2, 2]",
        "line 7: space.weight_bits names a value twice: [2, 2]",
    ),
    "a number where a list belongs": (
        "space:\n  weight_bits: 4",
        "line 7: space.weight_bits must be a list, such as [2, 3, 4], not 4",
    ),
    "a pattern kept at a wrong width": (
        "space:\n  keep:\n    'visual.*': 9",
        "line 8: space.keep.visual.*: 9 is not possible: "
        "weight bits must be among 2, 3, 4, 5, 6, 8, 16",
    ),
    "a recovery without steps": (
        "space:\n  recovery:\n    steps: []",
        "line 8: space.recovery.steps has no value to choose from",
    ),
    "a recovery of nothing": (
        "space:\n  recovery:\n    context_length: [0]\n    reduction: [0]",
        "line 7: space.recovery: a recovery needs a context_length or a reduction above 0, "
        "or distil: {}",
    ),
    "an adapter width out of range": (
        "space:\n  recovery:\n    adapter_bits: [5]",
        "line 8: space.recovery.adapter_bits: 5 is not possible: write 4, 6, 8 or 16",
    ),
    "a section that is a number": (
        "space: 5",
        "line 6: space must be a section with keys under it, not 5",
    ),
    "a section that is empty": (
        "space:",
        "line 6: space must be a section with keys under it, not empty",
    ),
    "a misspelt choice": (
        "search:\n  sampler: tpee",
        "line 7: search.sampler: 'tpee' is not possible: "
        "write tpe, nsga2 or random (did you mean tpe?)",
    ),
    "two mistakes": (
        "search:\n  seed: -1\n  workers: many",
        "line 7: search.seed: -1 is not possible: it must be at least 0\n"
        "JOB, line 8: search.workers must be a whole number, not 'many'",
    ),
    "three mistakes": (
        "partition:\n  depth: 4\n  granularity: entropic\n  threshold: x",
        "line 7: partition.depth: 4 is not possible: it must be at most 3\n"
        "JOB, line 8: partition.granularity: 'entropic' is not possible: write entropy, layer or "
        "transformer_block (did you mean entropy?)\n"
        "JOB, line 9: partition.threshold must be a number, not 'x'",
    ),
    "a budget axis upside down": (
        "search:\n  from_bits: 4\n  to_bits: 3",
        "line 7: search.from_bits (4) must be below to_bits (3)",
    ),
    "not a number": (
        "search:\n  epsilon: .nan",
        "line 7: search.epsilon must be a finite number, not nan",
    ),
    "an infinite time": (
        "stop:\n  time_s: .inf",
        "line 7: stop.time_s must be a finite number, not inf",
    ),
    "a fraction of a trial": (
        "stop:\n  trials: 1.5",
        "line 7: stop.trials must be a whole number, not 1.5",
    ),
    "a mirror that is nowhere": (
        "tracking:\n  mlflow: mlruns",
        "line 7: tracking.mlflow: 'mlruns' is not an MLflow tracking URI: "
        "write http://HOST:PORT for a server, or sqlite:///FILE",
    ),
    "no trials": (
        "stop:\n  trials: 0",
        "line 7: stop.trials: 0 is not possible: it must be at least 1",
    ),
    "a date where a number belongs": (
        "stop:\n  trials: 2026-01-02",
        "line 7: stop.trials must be a whole number, not 2026-01-02",
    ),
    "a number with colons": (
        "stop:\n  trials: 1:30",
        "line 7: 1:30 is 90 in YAML, where colons mean base 60: write the number itself",
    ),
    "a field of several kinds": (
        "search:\n  gpus_per_worker: all",
        "line 7: search.gpus_per_worker: 'all' is not possible: "
        "write a number of at least 0, or auto",
    ),
    "names of classes that are no texts": (
        "  classes: [on, 2]",
        "line 6: data.classes: [True, 2] is not possible: write a mapping of texts to texts, a "
        "list of texts, or the name of a file or a known data set (words such as no and on, and "
        "numbers, need quotes to be texts)",
    ),
    "a switch that is neither": (
        "search:\n  prune: maybe",
        "line 7: search.prune must be true or false, not 'maybe'",
    ),
    "an unknown unit": (
        "constraints:\n  max_nbytes: 40XB",
        "line 7: constraints.max_nbytes: '40XB' is not a valid size: "
        "write it like 4096, 40MB or 1.5GiB",
    ),
    "a negative size": (
        "constraints:\n  max_nbytes: -5",
        "line 7: constraints.max_nbytes: -5 is not possible: it must be above 0",
    ),
    "a size beyond every number": (
        f"constraints:\n  max_nbytes: {'9' * 400}kB",
        f"line 7: constraints.max_nbytes: '{'9' * 56}... is not possible: no size is that large",
    ),
    "an error above 1": (
        "constraints:\n  max_error: 5",
        "line 7: constraints.max_error: 5 is not possible: it must be at most 1",
    ),
    "objectives without the error": (
        "objectives: [nbytes]",
        "line 6: objectives must start with error and name at least one more",
    ),
    "an unknown objective": (
        "objectives: [error, speed]",
        "line 6: objectives: 'speed' is not possible: "
        f"write {', '.join(list(Objective)[:-1])} or {list(Objective)[-1]}",
    ),
    "an open bracket": (
        "objectives: [error,\n",
        "line 7: this is not valid YAML: while parsing a flow node, "
        "expected the node content, but found '<stream end>'",
    ),
    "a tab": (
        "space:\n\tweight_bits: [2]",
        "line 7: a tab indents this line: YAML is indented with spaces",
    ),
    "a key indented by mistake": (
        "  study: x",
        "line 6: data.study is not a known key: the keys of data are source, task, measure, "
        "path, images, image_column, label_column, question_column, answer_column, "
        "caption_column, templates, prompt, option_format, answer_pattern, answer_tokens, samples, "
        "splits, horizontal_flip, classes, background, skip_unreadable, seed, batch_size",
    ),
    "a second document": (
        "---\nstudy: second",
        "line 6: a second document starts here ('---'): keep one",
    ),
    "code in a list": (
        "space: !!python/object/apply:os.system ['true']",
        "line 6: the tag !!python/object/apply:os.system is not possible: write plain values",
    ),
    "code in a word": (
        "space: !!python/name:os.system x",
        "line 6: the tag !!python/name:os.system is not possible: write plain values",
    ),
    "a date that does not exist": (
        "stop:\n  trials: 2026-99-99",
        "line 7: '2026-99-99' cannot be read (month must be in 1..12): put text in quotes",
    ),
    "an alias of nothing": (
        "space: *nothing",
        "line 6: this is not valid YAML: found undefined alias 'nothing'",
    ),
    "an alias inside itself": (
        "space: &space [*space]",
        "line 6: values are nested deeper than 20 levels",
    ),
    "fifty open brackets": (
        "space: " + 50 * "[",
        "line 6: values are nested deeper than 20 levels",
    ),
    "aliases that multiply": (
        "\n".join(
            f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}' if n else '1'])}]" for n in range(9)
        ),
        "line 6: the file stands for more than 20,000 values: write fewer, or use fewer aliases",
    ),
}

# Whole files.
FILES = {
    "nothing": (
        b"",
        " is empty: a job needs at least 'study', 'model' and 'data' "
        "(the folder examples/ has whole ones)",
    ),
    "only a comment": (
        b"# later\n",
        " is empty: a job needs at least 'study', 'model' and 'data' "
        "(the folder examples/ has whole ones)",
    ),
    "a list": (
        b"- study\n",
        ", line 1: a job file is a mapping of keys to values (such as 'study: first'), "
        "but this one holds a list",
    ),
    "a word": (
        b"hello\n",
        ", line 1: a job file is a mapping of keys to values (such as 'study: first'), "
        "but this one holds only 'hello'",
    ),
    "a key in brackets": (
        b"[study]: first\n",
        ", line 1: a list cannot be a key (text in braces that is meant as text needs quotes)",
    ),
    "bytes that are not text": (
        b"\x89PNG\r\n",
        " is not a text file: byte 0 is not UTF-8 (save it as UTF-8)",
    ),
    "an archive": (b"PK\x03\x04", " is not a text file: it holds the character U+0003"),
    "two megabytes": (
        b"a" * 2_000_000,
        " is larger than 1,000,000 bytes: this is not a job file",
    ),
    "no study": (
        WHOLE.replace("study: first\n", "").encode(),
        ", line 1: study is missing",
    ),
    "only a study": (
        b"study: first\n",
        ", line 1: model is missing: write this section with at least source\n"
        "JOB, line 1: data is missing: write this section with at least source",
    ),
    "a study name with a space": (
        WHOLE.replace("first", "my study").encode(),
        ", line 1: study: 'my study' is not possible: use 1 to 64 letters, digits, "
        "'.', '_' and '-', starting with a letter or digit",
    ),
    "a study name that is a number": (
        WHOLE.replace("first", "5").encode(),
        ", line 1: study must be text (put it in quotes), not 5",
    ),
    "a model without a source": (
        WHOLE.replace("  source: reference\ndata", "  device: cpu\ndata").encode(),
        ", line 2: model.source is missing: write one of reference, open_clip, transformers",
    ),
    "an unknown source": (
        WHOLE.replace("  source: reference\ndata", "  source: onnx\ndata").encode(),
        ", line 3: model.source: 'onnx' is not possible: "
        "write reference, open_clip or transformers",
    ),
    "a section in one word": (
        WHOLE.replace("data:\n  source: reference", "data: reference").encode(),
        ", line 4: data must be a section with keys under it, not 'reference'",
    ),
    "data without a path": (
        WHOLE.replace("data:\n  source: reference", "data:\n  source: image_folder").encode(),
        ", line 4: data of source image_folder needs a path",
    ),
    "a template without a place for the class": (
        (WHOLE + "  templates: [hello]\n").encode(),
        ", line 6: data.templates: each one needs {} where the class name goes",
    ),
    "an option that is not listed": (
        (WHOLE + "  option_format: '{letter}.'\n").encode(),
        ", line 6: data.option_format needs {option} where an option goes",
    ),
    "a split without samples": (
        (WHOLE + "  samples:\n    test: 0\n").encode(),
        ", line 7: data.samples.test: 0 is not possible: it must be at least 1",
    ),
}

# Paths that are not there; FOLDER stands for the folder of the job file.
PATHS = {
    "data": (
        WHOLE.replace(
            "data:\n  source: reference", "data:\n  source: image_folder\n  path: photos"
        ),
        ", line 6: data.path: the folder FOLDER/photos does not exist",
    ),
    "a file for data": (
        WHOLE.replace("data:\n  source: reference", "data:\n  source: datasets\n  path: job.yaml"),
        ", line 6: data.path: the folder FOLDER/job.yaml is not a folder",
    ),
    "a checkpoint": (
        WHOLE.replace("reference\ndata", "open_clip\n  name: ViT-B-32\n  weights: best.pt\ndata"),
        ", line 5: model.weights: the file or folder FOLDER/best.pt does not exist",
    ),
    "a model's folder": (
        WHOLE.replace("reference\ndata", "transformers\n  name: ./clip\ndata"),
        ", line 4: model.name: the file or folder FOLDER/clip does not exist",
    ),
}


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_job(path)
    return str(caught.value)


@pytest.mark.parametrize(("addition", "message"), ADDITIONS.values(), ids=ADDITIONS)
def test_a_mistake_in_a_job_is_told_with_its_line(
    tmp_path: Path, addition: str, message: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(WHOLE + addition)

    assert refusal(path) == f"{path}, {message.replace('JOB', str(path))}"


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_job_is_told_apart(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)

    assert refusal(path) == f"{path}{message.replace('JOB', str(path))}"


@pytest.mark.parametrize(("content", "message"), PATHS.values(), ids=PATHS)
def test_a_missing_path_is_named_in_full(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path.resolve() / "job.yaml"
    path.write_text(content)

    assert refusal(path) == f"{path}{message.replace('FOLDER', str(path.parent))}"


def test_a_job_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"

    assert refusal(missing) == f"there is no job file {missing}"
    assert refusal(tmp_path) == f"{tmp_path} is a folder: name the job file in it"
