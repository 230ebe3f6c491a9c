"""Jobs on Flink from outside, by its REST interface: what they do, whether they stand still, how they are stopped."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

RUNNING: Final = "RUNNING"
RESTARTING: Final = "RESTARTING"
ENDED: Final = ("FINISHED", "CANCELED", "FAILED")
# What no job of Flink is: Flink does not know it, or does not answer.
GONE: Final = "GONE"
UNKNOWN: Final = "UNKNOWN"

_TIMEOUT_S: Final = 5.0
_SECONDS_BETWEEN_LOOKS: Final = 0.2
_METRICS_PER_REQUEST: Final = 50
_MOST_REASON: Final = 500
# Counters of the transforms stand behind the name of their stage, under this namespace (transforms.counts).
_COUNTERS: Final = "alertbeam_"


class FlinkError(RuntimeError):
    """Flink does not answer or refuses; the message says why."""


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes
    ----------
    job_id : str
    name : str
    state : str
        ``RUNNING``, ``RESTARTING``, ``FINISHED``, ``CANCELED``, ``FAILED``, ...
    """

    job_id: str
    name: str
    state: str


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of a job.

    Attributes
    ----------
    completed, failed, restored : int
        Since the job was submitted.
    age_s : float or None
        Time since the last one was complete; None before the first.
    size_bytes : int
        Of the states in the last one, also of what it shares with those before.
    duration_s : float
        That the last one took.
    path : str
        Address of the last one, for ``--savepoint_path``; empty before the first.
    """

    completed: int = 0
    failed: int = 0
    restored: int = 0
    age_s: float | None = None
    size_bytes: int = 0
    duration_s: float = 0.0
    path: str = ""


@dataclass(frozen=True)
class WatchLimits:
    """What a job may do before it is worth an alarm.

    Attributes
    ----------
    silence_s : float
        Nothing counted while messages wait.
    checkpoint_age_s : float
        No complete checkpoint, hence no commit.
    checkpoint_bytes : int
        Checkpoints grow with every end of a bundle, also of an idle stream; see docs/operations.md for how to shed it.
    checkpoint_s : float
        Duration of a checkpoint.
    """

    silence_s: float = 30.0
    checkpoint_age_s: float = 60.0
    checkpoint_bytes: int = 2 << 30
    checkpoint_s: float = 30.0


@dataclass(frozen=True)
class Health:
    """A job at a moment.

    Attributes
    ----------
    state : str
        See :class:`Job`; or :data:`GONE`, or :data:`UNKNOWN` if Flink does not answer.
    lag : int or None
        Messages that wait.
    counts : mapping of str to int
        Counters of the transforms, of all workers, since the job (re)started; other characters than letters and digits
        in their names are ``_``.
    checkpoints : Checkpoints
    alarms : sequence of str
        Sentences; empty if all is well.
    restarts : int
        Since the job was submitted.
    """

    state: str
    lag: int | None
    counts: Mapping[str, int]
    checkpoints: Checkpoints
    alarms: Sequence[str]
    restarts: int = 0


def rest(url: str, path: str, body: Mapping[str, Any] | None = None, method: str | None = None) -> Any:
    """Ask Flink's REST interface.

    Parameters
    ----------
    url : str
        ``http://host:port``.
    path : str
        Such as ``/jobs/overview``.
    body : mapping, optional
        Sent as JSON, by POST.
    method : str, optional
        Another one, such as PATCH.

    Raises
    ------
    FlinkError
        If it does not answer or refuses.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        raise FlinkError(f"{url}{path}: {error.code} {error.read()[:500].decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise FlinkError(f"{url}{path}: {error}") from error


def jobs(url: str) -> list[Job]:
    """Give all jobs that Flink remembers, the newest first."""
    found = sorted(rest(url, "/jobs/overview")["jobs"], key=lambda job: -job["start-time"])
    return [Job(job["jid"], job["name"], job["state"]) for job in found]


def state_of(url: str, job_id: str) -> str:
    """Tell the state of a job; :data:`GONE` if Flink, which was started anew, does not know it."""
    return next((job.state for job in jobs(url) if job.job_id == job_id), GONE)


def running_job(url: str, timeout_s: float = 60.0) -> Job:
    """Wait until a job runs, and give it; the newest if there are several.

    Raises
    ------
    FlinkError
        If none runs within the time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = [job for job in jobs(url) if job.state == RUNNING]
            if found:
                return found[0]
            reason = "no job runs"
        except FlinkError as error:
            reason = str(error)
        if time.monotonic() > deadline:
            raise FlinkError(f"{url}: {reason} after {timeout_s:.0f} s")
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def checkpoints(url: str, job_id: str) -> Checkpoints:
    """Tell of the checkpoints of a job."""
    told = rest(url, f"/jobs/{job_id}/checkpoints")
    counts, last = told["counts"], told["latest"]["completed"]
    found = Checkpoints(counts["completed"], counts["failed"], counts["restored"])
    if last is None:
        return found
    return Checkpoints(
        found.completed,
        found.failed,
        found.restored,
        max(0.0, time.time() - last["latest_ack_timestamp"] / 1000),
        last["state_size"],
        last["end_to_end_duration"] / 1000,
        last.get("external_path") or "",
    )


def counters(url: str, job_id: str) -> dict[str, int]:
    """Sum of each counter of the transforms over the stages and their parts; see :class:`Health`.

    A counter that several stages have is added up.
    """
    found: Counter[str] = Counter()
    for vertex in rest(url, f"/jobs/{job_id}")["vertices"]:
        path = f"/jobs/{job_id}/vertices/{vertex['id']}/subtasks/metrics"
        names = [entry["id"] for entry in rest(url, path) if f".{_COUNTERS}" in entry["id"]]
        for begin in range(0, len(names), _METRICS_PER_REQUEST):
            wanted = urllib.parse.quote(",".join(names[begin : begin + _METRICS_PER_REQUEST]))
            for entry in rest(url, f"{path}?agg=sum&get={wanted}"):
                found[entry["id"].rpartition(f".{_COUNTERS}")[2]] += round(float(entry["sum"]))
    return dict(found)


def restarts(url: str, job_id: str) -> int:
    """Tell how often a job had to start again since it was submitted."""
    told = rest(url, f"/jobs/{job_id}/metrics?get=numRestarts")
    return sum(round(float(entry["value"])) for entry in told)


def stop(url: str, job_id: str, folder: str | None = None, timeout_s: float = 300.0) -> str:
    """Stop a stream with a savepoint: what was read is written and committed.

    Parameters
    ----------
    url, job_id : str
    folder : str, optional
        Address for savepoints; that of Flink's settings by default.
    timeout_s : float

    Returns
    -------
    str
        Address of the savepoint, for ``--savepoint_path``.

    Raises
    ------
    FlinkError
        If Flink refuses, or does not do it within the time. The job may then go on.
    """
    body: dict[str, Any] = {"drain": False} | ({"targetDirectory": folder} if folder else {})
    trigger = rest(url, f"/jobs/{job_id}/stop", body)["request-id"]
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        told = rest(url, f"/jobs/{job_id}/savepoints/{trigger}")
        if told["status"]["id"] == "COMPLETED":
            outcome = told["operation"]
            if "location" not in outcome:
                reason = str(outcome.get("failure-cause", {}).get("stack-trace", outcome))
                raise FlinkError(f"no savepoint of job {job_id}: {reason[:1000]}")
            return str(outcome["location"])
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    raise FlinkError(f"no savepoint of job {job_id} within {timeout_s:.0f} s")


def cancel(url: str, job_id: str) -> None:
    """Cancel a job; what was done since its last checkpoint will be done once more."""
    rest(url, f"/jobs/{job_id}", method="PATCH")


def discard(url: str, savepoint_path: str) -> None:
    """Let Flink remove a savepoint; that it could not is not waited for."""
    rest(url, "/savepoint-disposal", {"savepoint-path": savepoint_path})


def failure(url: str, job_id: str) -> str:
    """Tell why a job failed last, in one line; nothing if it never did, or if Flink does not answer."""
    try:
        told = rest(url, f"/jobs/{job_id}/exceptions?maxExceptions=1")["exceptionHistory"]["entries"]
    except FlinkError:
        return ""
    lines = [line.strip() for line in told[0]["stacktrace"].splitlines()] if told else []
    causes = [line.removeprefix("Caused by: ") for line in lines if line and not line.startswith(("at ", "..."))]
    return causes[-1][:_MOST_REASON] if causes else ""


@dataclass
class Watchdog:
    """Looks at a job now and then, and says what is wrong: that its state is RUNNING proves nothing.

    Parameters
    ----------
    url, job_id : str
    lag : callable
        Gives the messages that wait in the topics, from their committed offsets; None if that is not known.
    limits : WatchLimits
    clock : callable
        Seconds, for the time that passes.
    """

    url: str
    job_id: str
    lag: Callable[[], int | None]
    limits: WatchLimits = WatchLimits()
    clock: Callable[[], float] = time.monotonic
    _restarts: int | None = None
    _since: float | None = None
    _started: float | None = None
    _before: tuple[Any, ...] = field(default=())

    def look(self) -> Health:
        """Look now."""
        now = self.clock()
        self._started = now if self._started is None else self._started
        lag = self.lag()
        try:
            state = state_of(self.url, self.job_id)
            if state == GONE:
                return Health(state, lag, {}, Checkpoints(), ("Flink was started anew, and does not know the job",))
            counts, done = counters(self.url, self.job_id), checkpoints(self.url, self.job_id)
            starts = restarts(self.url, self.job_id)
        except FlinkError as error:
            return Health(UNKNOWN, lag, {}, Checkpoints(), (f"Flink does not answer: {error}",))
        alarms = [
            *self._starts(state, starts),
            *self._silence(now, state, lag, counts),
            *self._checkpoints(now, state, done),
        ]
        return Health(state, lag, counts, done, tuple(alarms), starts)

    def _starts(self, state: str, starts: int) -> list[str]:
        before, self._restarts = self._restarts, starts
        if before is not None and starts > before:
            return [f"the job failed and started again since the last look; it did {starts:,} times in all"]
        return ["the job failed and waits to start again"] if state == RESTARTING else []

    def _silence(self, now: float, state: str, lag: int | None, counts: Mapping[str, int]) -> list[str]:
        seen = (state, tuple(sorted(counts.items())))
        if self._since is None or seen != self._before or not lag:
            self._since, self._before = now, seen
        silent_s = now - self._since
        if silent_s <= self.limits.silence_s:
            return []
        return [f"the job is {state} and has done nothing for {silent_s:.0f} s, while {lag:,} messages wait"]

    def _checkpoints(self, now: float, state: str, done: Checkpoints) -> list[str]:
        assert self._started is not None
        limits, found = self.limits, []
        age_s = now - self._started if done.age_s is None else done.age_s
        if age_s > limits.checkpoint_age_s and state not in ENDED:
            found.append(f"no checkpoint was complete for {age_s:.0f} s ({done.failed} failed): nothing is committed")
        if done.size_bytes > limits.checkpoint_bytes:
            found.append(
                f"the last checkpoint holds {done.size_bytes / 1e6:,.0f} MB: start again from the committed offsets"
            )
        if done.duration_s > limits.checkpoint_s:
            found.append(f"the last checkpoint took {done.duration_s:.0f} s")
        return found
