"""What is refused, and in which words: the list that `docs/refusals.md` shows and a test sends.

python -m tests.support.refusals > docs/refusals.md
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

TOKEN = "0123456789abcdef" * 2

_JOB = "study: first\nmodel: {source: reference}\ndata: {source: reference}\n"


def _with(line: str, *, data: str = "{source: reference}", study: str = "first") -> str:
    job = _JOB.replace("study: first", f"study: {study}")
    return job.replace("data: {source: reference}", f"data: {data}") + line


@dataclass(frozen=True)
class Request:
    """A request to a server with a complete study `digits` and one, `busy`, that is driven."""

    what: str
    method: str
    path: str
    status: int
    sentence: str
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    token: str | None = TOKEN

    @property
    def shown(self) -> str:
        """The request as a table has it."""
        return f"`{self.method} {self.path}`"


def _post(what: str, body: str, sentence: str, **other: object) -> Request:
    """A job file that is sent."""
    given: dict[str, object] = {
        "status": 422,
        "headers": {"content-type": "application/yaml"},
        **other,
    }
    return Request(what, "POST", "/studies", body=body, sentence=sentence, **given)  # type: ignore[arg-type]  # of the fields


def _pictures(path: str) -> str:
    return _with("", data=f"{{source: image_folder, path: {path}}}")


REQUESTS = (
    Request(
        "no token",
        "GET",
        "/studies",
        401,
        "this server asks for its token: send it as 'Authorization: Bearer TOKEN'",
        token=None,
    ),
    Request(
        "another token",
        "GET",
        "/studies",
        401,
        "this is not the server's token, which is what BITFRONT_TOKEN held when it started",
        token="another",
    ),
    Request(
        "another host's name",
        "GET",
        "/studies",
        421,
        "this server is not called 'evil.example': start it with --host-name to give it that name",
        headers={"host": "evil.example"},
    ),
    Request(
        "from a page of another site",
        "POST",
        "/studies/digits/stop",
        403,
        "a page of another site may not change anything here",
        headers={"origin": "http://evil.example"},
    ),
    _post(
        "a job as plain text",
        _JOB,
        "a job is sent with the content-type application/yaml or application/json, not "
        "'text/plain'",
        status=415,
        headers={"content-type": "text/plain"},
    ),
    _post(
        "a body of more than 1 MiB",
        "x" * (2**20 + 1),
        "the body is larger than 1,048,576 bytes: this is not a job file",
        status=413,
    ),
    _post(
        "broken YAML",
        "study: [\n",
        "line 2: this is not valid YAML: while parsing a flow node, expected the node content, but "
        "found '<stream end>'",
    ),
    _post(
        "a misspelt key, and a width that there is not",
        _with("space: {weight_bits: [2, 7]}\nsearch: {worker: 2}\n"),
        "line 4: space.weight_bits: 7 is not possible: weight bits must be among 2, 3, 4, 5, 6, 8, "
        "16 (and 1 more)",
    ),
    _post(
        "a relative path",
        _pictures("pictures"),
        "line 3: data.path: 'pictures' starts at no folder: write the absolute path that the "
        "machine of the service has",
    ),
    _post(
        "a path in a home folder",
        _pictures("~/pictures"),
        "line 3: data.path: '~/pictures' starts at no folder: write the absolute path that the "
        "machine of the service has",
    ),
    _post(
        "a variable in a path",
        _pictures("$HOME/pictures"),
        "line 3: data.path: '$HOME/pictures' names a variable: write the path itself",
    ),
    _post(
        "a path outside of the roots",
        _pictures("/etc"),
        "line 3: data.path: /etc lies outside of the folders that this machine gives to jobs "
        "(BITFRONT_ROOTS): move it into one of them",
    ),
    _post(
        "the name of a study that exists",
        _with("", study="digits"),
        "a study named 'digits' exists already: resume or delete it, or give the job another name "
        "in 'study'",
        status=409,
    ),
    Request(
        "an unknown study", "GET", "/studies/none", 404,
        "there is no study 'none'; the database holds busy, digits",
    ),
    Request(
        "an unknown trial", "GET", "/studies/digits/trials/77", 404,
        "study 'digits' has no trial 77",
    ),
    Request(
        "a page too large", "GET", "/studies/digits/trials?limit=5000", 422,
        "the parameter limit: '5000' is not possible: it must be at most 1000",
    ),
    Request(
        "a size without a meaning", "GET", "/studies/digits/best?max_nbytes=big", 422,
        "the parameter max_nbytes: 'big' is not a valid size: write it like 4096, 40MB or 1.5GiB",
    ),
    Request(
        "an error above 100 %", "GET", "/studies/digits/best?max_error=200%25", 422,
        "the parameter max_error: '200%' is not possible: it must be at most 1",
    ),
    Request(
        "a misspelt limit", "GET", "/studies/digits/best?max_size=5MB", 422,
        "the parameter 'max_size' is not known here: the parameters are by, max_activation_nbytes, "
        "max_bit_operations, max_bits, max_divergence, max_error, max_kv_nbytes, "
        "max_latency_s, max_memory_nbytes, max_nbytes, max_token_s",
    ),
    Request(
        "a limit that nothing holds", "GET", "/studies/digits/best?max_nbytes=7", 404,
        "study 'digits' has no trial with size at most 7 B: the nearest is trial 3 with 120 B "
        "(1614 % over), error 22.5 %",
    ),
    Request(
        "an id of no event", "GET", "/studies/digits/events", 422,
        "the header last-event-id must be the id of a line, not 'abc'",
        headers={"last-event-id": "abc"},
    ),
    Request(
        "pausing what nobody runs", "POST", "/studies/digits/pause", 409,
        "study 'digits' is complete, and nobody runs it: resume goes on with it",
    ),
    Request(
        "resuming what runs", "POST", "/studies/busy/resume", 409,
        "study 'busy' runs already, by another",
    ),
    Request(
        "a misspelt wish", "POST", "/studies/digits/resume", 422,
        "trail is not a known key: did you mean trials?",
        headers={"content-type": "application/json"},
        body='{"trail": 9}',
    ),
    Request(
        "deleting what runs", "DELETE", "/studies/busy", 409,
        "study 'busy' is being run by another (last heartbeat 0 s ago): wait for it, or stop it "
        "first",
    ),
    Request(
        "an address of nothing", "GET", "/nothing", 404,
        "there is nothing at '/api/v1/nothing': /api/v1/openapi.json lists what there is",
    ),
)  # fmt: skip

JOBS = {
    "an empty file": (
        "",
        "JOB is empty: a job needs at least 'study', 'model' and 'data' (the folder examples/ has "
        "whole ones)",
    ),
    "a key given twice": (
        _with("study: second\n"),
        "JOB, line 4: study is given a second time (first on line 1): keep one of them",
    ),
    "a misspelt key": (
        _with("space: {weight_bit: [2]}\n"),
        "JOB, line 4: space.weight_bit is not a known key: did you mean weight_bits?",
    ),
    "a tag that would run code": (
        _with("target: !!python/name:os.system\n"),
        "JOB, line 4: the tag !!python/name:os.system is not possible: write plain values",
    ),
    "no trials": (
        _with("stop: {trials: 0}\n"),
        "JOB, line 4: stop.trials: 0 is not possible: it must be at least 1",
    ),
    "a folder that is not there": (
        _pictures("/nowhere"),
        "JOB, line 3: data.path: the folder /nowhere does not exist",
    ),
    "a width that no runtime of the target has": (
        _with("target: openvino\nspace: {weight_bits: [3]}\n"),
        "JOB, line 5: space.weight_bits: openvino has no kernel for w3a8: the nearest that it has "
        "is w4a8 or w4a16 or w4a16g16, or leave target out",
    ),
}

ARGUMENTS = {
    "bitfront frnt digits": "there is no command 'frnt': did you mean 'front'?",
    "bitfront best none": "there is no study 'none'; the database holds busy, digits",
    "bitfront best digits --max-nbytes big": (
        "Invalid value for '--max-nbytes': 'big' is not a valid size: write it like 4096, 40MB or "
        "1.5GiB"
    ),
    "bitfront best digits --max-size 5MB": (
        "No such option '--max-size'. (Did you mean one of: '--max-bits', '--max-error', "
        "'--max-nbytes'?)"
    ),
    "bitfront resume digits --trials 0": (
        "Invalid value for '--trials': 0 is not in the range x>=1."
    ),
    "bitfront logs digits --trial 77": (
        "study 'digits' has no trial 77: see 'bitfront logs digits'"
    ),
    "bitfront submit nowhere.yaml": "there is no job file nowhere.yaml",
    "bitfront status digits --db /nowhere/studies.db": (
        "there is no database at /nowhere/studies.db: submit a job to create it, or name another "
        "with --db"
    ),
    "bitfront serve --host 0.0.0.0": (
        "--host 0.0.0.0 can be reached from other machines, and without a token whoever reaches it "
        "may start and delete studies: set BITFRONT_TOKEN, such as to the output of 'openssl rand "
        "-hex 32'"
    ),
}


def page() -> str:
    """The page that shows them all."""
    requests = [(one.what, one.shown, str(one.status), one.sentence) for one in REQUESTS]
    jobs = [(what, said) for what, (_, said) in JOBS.items()]
    arguments = [(f"`{line}`", said) for line, said in ARGUMENTS.items()]
    return "\n\n".join(
        (
            "# What is refused, and how",
            "A refusal is one sentence that names the thing and the way out. A test sends each of\n"
            "these and compares the answer; `python -m tests.support.refusals` writes this page.",
            "## Requests",
            "Of a server with `BITFRONT_TOKEN` and `BITFRONT_ROOTS`, a complete study `digits`\n"
            "and a study `busy` that is driven. Paths are below `/api/v1`. The sentence is\n"
            "`detail` of the problem; of a job with several mistakes, `mistakes` has them all.",
            _table(("what", "request", "status", "sentence"), requests),
            "## Job files",
            "What `bitfront validate JOB` says, and ends with status 2.",
            _table(("what", "sentence"), jobs),
            "## Arguments",
            "Each ends with status 2.",
            _table(("command", "sentence"), arguments) + "\n",
        )
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(page())
