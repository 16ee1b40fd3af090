"""The Ray engine without Ray: its actors in this process, one call after another, and lost when a test says so.

`test_ray.py` does the same on a real cluster, which takes minutes.
"""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import featstore
from featstore import Utterance
from featstore.extractors import ExtractorError
from featstore.jobs import crew
from featstore.jobs import ray as ray_engine
from featstore.jobs.batches import plan
from featstore.jobs.extract import extract
from featstore.jobs.result import Result
from featstore.store import lock
from featstore.upkeep.verify import verify
from tests.fakes import FakeExtractor
from tests.featstore.jobs.test_extract import contents, corpus, failing_disk, failures_of
from tests.featstore.jobs.test_ray import times_stored


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ref:
    def __init__(self, actor: Actor, name: str, arguments: tuple) -> None:
        self.actor, self.name, self.arguments = actor, name, arguments
        self.error: BaseException | None = None
        self.answer: Any = None


class Actor:
    """Calls wait in a line until somebody waits for an answer."""

    def __init__(self, ray: FakeRay, make: Callable[[], Any]) -> None:
        self.ray, self.own = ray, make()
        self.line: deque[Ref] = deque()
        self.gone = False

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: object) -> Ref:
            self.ray.calls.append((name, self.ray.actors.index(self), *arguments))
            ref = Ref(self, name, arguments)
            if name == "stop":  # beside the others
                self.own.stop()
            else:
                self.line.append(ref)
            return ref

        return SimpleNamespace(remote=remote, options=lambda concurrency_group: SimpleNamespace(remote=remote))

    def step(self) -> Ref:
        ref = self.line.popleft()
        if not self.gone and self.ray.kills(ref):
            self.gone, self.own = True, None  # with all that it had not committed
        if self.gone:
            ref.error = RayError("The actor died\nunexpectedly.")
            return ref
        try:
            ref.answer = getattr(self.own, ref.name)(*ref.arguments)
        except Exception as error:
            ref.error = RayTaskError(error)
        return ref


class FakeRay:
    """What `featstore.jobs` asks of Ray."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, cpus: int = 2, kills: Callable[[Ref], bool] = lambda ref: False) -> None:
        self.kills, self.cpus = kills, cpus
        self.actors: list[Actor] = []
        self.calls: list[tuple] = []
        self.killed: list[int] = []
        self.needs: dict[str, Any] = {}
        self._turn = 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": self.cpus}}]

    def remote(self, **needs: Any) -> Callable[[type], Any]:
        self.needs = needs

        def wrap(kind: type) -> Any:
            def new() -> Actor:
                self.actors.append(Actor(self, kind))
                return self.actors[-1]

            return SimpleNamespace(remote=new)

        return wrap

    def wait(self, refs: list[Ref], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Ref], list[Ref]]:
        done = []
        while len(done) < num_returns:
            busy = [actor for actor in self.actors if actor.line]
            self._turn += 1
            ref = busy[self._turn % len(busy)].step()
            if ref in refs:
                done.append(ref)
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: Ref) -> Any:
        if ref.error:
            raise ref.error
        return ref.answer

    def kill(self, actor: Actor) -> None:
        actor.gone, actor.own = True, None
        actor.line.clear()
        self.killed.append(self.actors.index(actor))


def run(
    monkeypatch: pytest.MonkeyPatch, fake: FakeRay, utterances: list[Utterance], store: Path, make: Any = FakeExtractor, **more: Any
) -> Result:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", fake)
    result, spec = ray_engine.extract(utterances, make, store, **{"actors": 2, "batch_s": 5, **more})
    assert spec == FakeExtractor().spec
    with lock.hold(store, alone=True):  # whoever repairs it need not wait for anybody
        pass
    return result


def over(id: str, times: int = 99) -> Callable[[Ref], bool]:
    """Kills an actor that is handed this utterance."""
    left = [times]

    def kills(ref: Ref) -> bool:
        found = ref.name == "work" and any(u.id == id for u in ref.arguments[0]) and left[0] > 0
        left[0] -= found
        return found

    return kills


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    return corpus(tmp_path, 24)


@pytest.fixture
def plain(utterances: list[Utterance], tmp_path: Path) -> dict[str, bytes]:
    extract(utterances, FakeExtractor(), tmp_path / "plain", batch_s=5)
    return contents(tmp_path / "plain")


def test_two_actors_write_the_frames_of_a_plain_run(
    tmp_path: Path, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(utterances[3].audio).write_bytes(b"")
    plain = extract(utterances, FakeExtractor(), tmp_path / "plain", batch_s=5)
    fake, seen = FakeRay(cpus=6), []
    result = run(monkeypatch, fake, utterances, tmp_path / "s", progress=lambda r: seen.append((r.audio_s, r.total_s)))
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")
    assert set(times_stored(tmp_path / "s").values()) == {1}
    assert len(list((tmp_path / "s" / "index" / "fake").iterdir())) == 2  # a part an actor
    assert (result.asked, result.done, result.skipped, result.put_off) == (24, 23, 0, 0)
    assert result.failures == plain.failures == failures_of(tmp_path / "s") and len(plain.failures) == 1
    assert (result.writers, result.decoders, fake.needs) == (2, 3, {"num_cpus": 3, "concurrency_groups": {"stop": 1}})
    assert (result.audio_s, result.total_s) == (pytest.approx(plain.audio_s), pytest.approx(plain.total_s))
    audio_s, total_s = zip(*seen, strict=True)
    assert list(audio_s) == sorted(audio_s) and audio_s[-1] == result.audio_s and set(total_s) == {result.total_s}
    assert 0 < result.busy["encode"] <= 1 and result.busy_s["encode"] > 0 and result.wall_s > 0
    # Each batch once, the long ones first; both actors have two to do before either has a third.
    work = [(actor, batch) for name, actor, batch, *_ in [c for c in fake.calls if c[0] == "work"]]
    seconds = [sum(u.duration_s for u in batch) for _, batch in work]
    assert seconds == sorted(seconds, reverse=True) and len(seconds) == len(plan(utterances, 5)) > 4
    assert sorted(actor for actor, _ in work[:4]) == [0, 0, 1, 1]
    opened = [c for c in fake.calls if c[0] == "open"]
    assert [c[2:] for c in opened] == [(FakeExtractor, (tmp_path / "s").resolve(), 3)] * 2
    assert sorted(fake.killed) == [0, 1] and [c[1] for c in fake.calls if c[0] == "close"] == [0, 1]
    assert verify(tmp_path / "s").findings == []


def test_the_next_run_does_what_is_missing(
    tmp_path: Path, utterances: list[Utterance], plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with featstore.writer(tmp_path / "s", FakeExtractor().spec) as out:
        there = featstore.open(tmp_path / "plain")
        for u in utterances[:9]:
            out.add(u, there.frames("fake", u.id))
    fake = FakeRay()
    result = run(monkeypatch, fake, utterances, tmp_path / "s", workers=7)
    assert (result.asked, result.skipped, result.done, result.decoders) == (24, 9, 15, 7)
    assert contents(tmp_path / "s") == plain and set(times_stored(tmp_path / "s").values()) == {1}
    wanted = {id for name, _, *more in fake.calls if name == "work" for id in more[1]}
    assert wanted == {u.id for u in utterances[9:]}
    again = FakeRay()
    assert run(monkeypatch, again, utterances, tmp_path / "s").skipped == 24
    assert not [c for c in again.calls if c[0] == "work"]
    with pytest.raises(ValueError, match="already holds feature 'fake' of 24"):
        run(monkeypatch, FakeRay(), utterances, tmp_path / "s", resume=False)


def test_an_actor_that_is_lost_costs_nothing(
    tmp_path: Path, utterances: list[Utterance], plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was handed goes to others: what it had encoded at once, what it had in hand alone and at the end."""
    fake, notes, seen = FakeRay(kills=over("u7", times=1)), [], []
    result = run(
        monkeypatch, fake, utterances, tmp_path / "s", note=notes.append, progress=lambda r: seen.append(r.audio_s)
    )
    assert (result.done, result.failures, result.writers) == (24, [], 2)
    assert contents(tmp_path / "s") == plain and set(times_stored(tmp_path / "s").values()) == {1}
    assert notes == ["an actor was lost, its batches go to others: The actor died unexpectedly."]
    assert len(fake.actors) == 3 and sorted(fake.killed) == [0, 1, 2]
    assert verify(tmp_path / "s").damaged == []
    assert seen == sorted(seen)  # what the lost one did was heard, and stays so


def test_who_always_kills_is_found_and_the_rest_is_there(
    tmp_path: Path, utterances: list[Utterance], plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost with its batch among others, twice with its batch alone, then twice with the utterance alone."""
    (batch,) = (b for b in plan(utterances, 5) if any(u.id == "u7" for u in b))
    assert len(batch) > 1
    fake, notes = FakeRay(kills=over("u7")), []
    result = run(monkeypatch, fake, utterances, tmp_path / "s", note=notes.append)
    why = "2 actors were lost over this utterance alone; last: The actor died unexpectedly."
    assert [(f["id"], f["error"]) for f in result.failures] == [("u7", why)] and result.done == 23
    assert failures_of(tmp_path / "s") == result.failures
    assert set(contents(tmp_path / "s")) == set(plain) - {"u7"} and set(times_stored(tmp_path / "s").values()) == {1}
    handed = [[u.id for u in more[0]] for name, _, *more in fake.calls if name == "work"]
    with_it = [ids for ids in handed if "u7" in ids]
    assert with_it == [[u.id for u in batch]] * 3 + [["u7"]] * 2 and len(notes) == 5
    assert all([u.id] in handed for u in batch)


class Broken(FakeExtractor):
    """As a GPU that fails, or another fault: at each of its calls, or at the first, fourth, seventh and tenth of them all."""

    def __init__(self, error: Exception, calls: list[int] | None = None) -> None:
        super().__init__()
        self._error, self._calls = error, calls

    def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        if self._calls is not None:
            self._calls[0] += 1
        if self._calls is None or self._calls[0] in (1, 4, 7, 10):
            raise self._error
        return super().extract(waves)


def test_a_machine_s_trouble_is_an_actor_s_and_without_end_the_extraction_s(
    tmp_path: Path, utterances: list[Utterance], plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (RuntimeError("CUDA error:\nan illegal access"), MemoryError("no room")):
        fake = FakeRay()
        with pytest.raises(
            ExtractorError, match=r"^11 actors were lost in a row without encoding a batch; last: "
        ) as found:
            run(monkeypatch, fake, utterances, tmp_path / "s", partial(Broken, error))
        assert (
            " ".join(str(error).split()) in str(found.value) and len(fake.actors) == 12
        )  # five times each, and once more
    # As long as a batch is encoded in between it goes on, however often.
    monkeypatch.setattr(crew, "LOST_IN_A_ROW", 1)
    fake = FakeRay()
    result = run(monkeypatch, fake, utterances, tmp_path / "t", partial(Broken, error, [0]), actors=1)
    assert (result.done, result.failures) == (24, []) and len(fake.actors) > 4
    assert contents(tmp_path / "t") == plain and set(times_stored(tmp_path / "t").values()) == {1}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("bug"), TypeError("bug")])
def test_everybody_s_trouble_ends_it_at_once(
    tmp_path: Path, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fake = FakeRay()
    with pytest.raises(type(error)) as found:
        run(monkeypatch, fake, utterances, tmp_path / "s", partial(Broken, error))
    assert found.value is error and len(fake.actors) == 2
    assert [c[1] for c in fake.calls if c[0] == "stop"] == [0, 1]


def test_an_encoder_that_cannot_be_made_is_told_as_it_is(
    tmp_path: Path, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> FakeExtractor:
        raise RuntimeError("no weights")

    fake = FakeRay()
    with pytest.raises(RuntimeError, match="^no weights$"):
        monkeypatch.setitem(sys.modules, "ray", fake)
        ray_engine.extract(utterances, make, tmp_path / "s", actors=2)
    assert len(fake.actors) == 2


def test_interrupted_it_keeps_what_is_encoded(
    tmp_path: Path, utterances: list[Utterance], plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(result: Result) -> None:
        if result.audio_s > 15:
            raise KeyboardInterrupt

    fake = FakeRay()
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, fake, utterances, tmp_path / "s", progress=interrupt)
    assert [c[1] for c in fake.calls if c[0] == "stop"] == [0, 1] and fake.calls[-1][0] == "finish"
    kept = times_stored(tmp_path / "s")
    assert 3 < kept.total() == len(kept) < 20
    assert sum(u.duration_s for u in utterances if u.id in kept) > 15
    assert all(data == plain[id] for id, data in contents(tmp_path / "s").items())


def test_what_a_failing_disk_put_off_is_no_failure(
    tmp_path: Path, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    (batch,) = (b for b in plan(utterances, 5) if utterances[2] in b)
    failing_disk(monkeypatch, utterances[2].audio, times=99)
    result = run(monkeypatch, FakeRay(), utterances, tmp_path / "s")
    assert [f["id"] for f in result.failures] == ["u2"] == [f["id"] for f in failures_of(tmp_path / "s")]
    assert (result.put_off, result.done) == (len(batch) - 1, 24 - len(batch)) and len(batch) > 1


def test_what_was_encoded_and_is_not_there_is_listed(
    tmp_path: Path, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featstore.store.writer.commit_part", lambda *_: None)
    result = run(monkeypatch, FakeRay(), utterances[:3], tmp_path / "s")
    why = "encoded, but not in the store's index; run the same command again"
    assert sorted((f["id"], f["error"]) for f in failures_of(tmp_path / "s")) == [(f"u{k}", why) for k in range(3)]
    assert (result.done, len(result.failures)) == (0, 3)


def test_an_actor_decodes_a_batch_while_it_encodes_the_one_before(tmp_path: Path, utterances: list[Utterance]) -> None:
    """A failure is told once, and so is what was put off; an actor that is stopped takes nothing more."""
    Path(utterances[0].audio).write_bytes(b"")
    actor, batches = crew._Actor(), [[u] for u in utterances[:5]]
    assert actor.open(FakeExtractor, tmp_path / "s", 2) == (FakeExtractor().spec, 15.0)
    told = [actor.work(batch, {batch[0].id}) for batch in batches[:3]]
    assert [encoded for encoded, _, _ in told] == [0, 1, 2]
    assert [[f["id"] for f in result.failures] for _, result, _ in told] == [[], ["u0"], []]
    actor._pipeline.put_off = {"x"}
    encoded, result, late = actor.finish()
    assert (encoded, result.done, result.failures, late) == (3, 2, [], {"x"})
    assert set(featstore.open(tmp_path / "s").ids) == {"u1", "u2"}
    actor.work(batches[3], {"u3"})
    actor.stop()
    encoded, result, late = actor.work(batches[4], {"u4"})
    assert (encoded, result.done, late, actor._pipeline.waiting) == (3, 2, set(), 1)
    assert actor.finish()[0] == 3
    actor.close()
    assert set(featstore.open(tmp_path / "s").ids) == {"u1", "u2"}


def test_how_long_an_actor_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (crew.CALLS, crew.DEATHS, crew.LOST_IN_A_ROW, crew.STOP_S) == (2, 2, 5, 60.0)


def node(cpu: int = 0, gpu: int = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": float(cpu), **({"GPU": float(gpu)} if gpu else {})}}


@pytest.mark.parametrize(
    ("nodes", "actors", "gpu", "found"),
    [
        ([node(4), node(4)], None, None, (1, {"num_cpus": 4}, 4)),  # an actor lies on one machine
        ([node(4), node(4)], 3, None, (3, {"num_cpus": 2}, 2)),
        ([node(6), node(3)], 3, None, (3, {"num_cpus": 3}, 3)),
        ([node(4), node(4, alive=False)], 4, None, (4, {"num_cpus": 1}, 1)),
        ([node(8, 2)], None, None, (2, {"num_gpus": 1, "num_cpus": 1}, 4)),
        ([node(8, 2)], 1, None, (1, {"num_gpus": 1, "num_cpus": 1}, 8)),
        ([node(8, 2)], None, False, (1, {"num_cpus": 8}, 8)),
        ([node(2, 4)], None, True, (4, {"num_gpus": 1, "num_cpus": 1}, 1)),
        ([node(4)], 5, None, "5 actors need a CPU each, the cluster has 4; use --actors"),
        ([node(4)], None, True, "1 actors need a GPU each, the cluster has 0; use --actors or --device cpu"),
        ([node(4, 2)], 3, None, "3 actors need a GPU each, the cluster has 2"),
    ],
)
def test_what_each_actor_gets_of_a_cluster(nodes: list, actors: int | None, gpu: bool | None, found: Any) -> None:
    cluster = SimpleNamespace(nodes=lambda: nodes)
    if isinstance(found, str):
        with pytest.raises(ExtractorError, match=f"^{found}"):
            ray_engine._share(cluster, actors, gpu)
    else:
        assert ray_engine._share(cluster, actors, gpu) == found


def test_ray_is_started_quietly_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine where nobody names a cluster; a cluster that is named is asked first."""
    told: list[object] = []
    before = signal.getsignal(signal.SIGTERM)

    def init(address: str, **settings: object) -> None:
        told.append(
            (address, settings["include_dashboard"], settings["object_store_memory"], settings["log_to_driver"])
        )
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does

    fake = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: told.append("ended"))
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(ray_engine, "_ask", lambda address: told.append(f"asked {address}"))
    for name in ("RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    own = ("local", False, 100 << 20, False)
    with ray_engine._connected(None) as connected:
        assert connected is fake and told == [own] and signal.getsignal(signal.SIGTERM) == before
        assert ray_engine.os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert told == [own, "ended"]
    with pytest.raises(KeyboardInterrupt), ray_engine._connected("host:6379"):
        raise KeyboardInterrupt
    assert told[2:] == ["asked host:6379", ("host:6379", None, None, False), "ended"]
    monkeypatch.setenv("RAY_ADDRESS", "other:1")
    with ray_engine._connected(None):
        assert told[5] == "asked other:1"
    with ray_engine._connected("host:6379"):
        assert told[8] == "asked host:6379"
    fake.is_initialized = lambda: True
    with ray_engine._connected("host:6379"):
        assert len(told) == 11  # as it is found, so it is left
    assert len(told) == 11


@pytest.mark.parametrize(
    ("code", "stderr", "says"),
    [
        (-signal.SIGALRM, "", "no Ray cluster answers at host:1 within 10 s; start one with: ray start --head"),
        (
            1,
            "ray.AuthenticationError: x\nConnectionError",
            "the Ray cluster at host:1 asks for its token: set RAY_AUTH_MODE",
        ),
        (
            1,
            "Traceback\nConnectionError: nobody there\n",
            r"no Ray cluster at host:1; .*\(ConnectionError: nobody there\)$",
        ),
        (3, "", r"\(exit code 3\)$"),
        (0, "warnings", None),
    ],
)
def test_what_a_cluster_answers(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, says: str | None) -> None:
    def asked(command: list[str], env: dict[str, str], **_: object) -> SimpleNamespace:
        assert command[0] == sys.executable and command[3:] == ["host:1", "10"] and "PATH" in env
        assert env["RAY_NUM_REDIS_GET_RETRIES"] == "3"
        return SimpleNamespace(returncode=code, stderr=stderr)

    monkeypatch.setattr(ray_engine.subprocess, "run", asked)
    if says is None:
        ray_engine._ask("host:1")
    else:
        with pytest.raises(ExtractorError, match=says):
            ray_engine._ask("host:1")
