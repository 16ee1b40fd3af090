"""``.nemo`` files: what is read, and that nothing in them is run, unpacked or believed."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from featstore.extractors import nemo_archive
from featstore.extractors.nemo_archive import read_nemo
from featstore.extractors.sources import WeightsError
from featstore.extractors.weights import check_config

CONFIG = {
    "target": "nemo.collections.asr.models.label_models.EncDecSpeakerLabelModel",
    "labels": ["a", "b"],
    "train_ds": {"labels": ["spk"] * 20_000},
    "model_defaults": {"filters": 16},
    "preprocessor": {"_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor"},
    "encoder": {"_target_": "nemo.collections.asr.modules.ConvASREncoder", "filters": "${model_defaults.filters}"},
    "decoder": {"_target_": "nemo.collections.asr.modules.SpeakerDecoder"},
}


def nemo_file(path: Path, config: object = CONFIG, weights: object = None, mode: str = "w", **extra: bytes) -> Path:
    """A .nemo archive: members in the order and with the names NeMo gives them."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)} if weights is None else weights, buffer)
    members = {"./model_config.yaml": json.dumps(config).encode(), "./model_weights.ckpt": buffer.getvalue()}
    with tarfile.open(path, mode) as archive:
        for name, data in {**members, **extra}.items():
            if data is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_nemo_archive(tmp_path: Path, mode: str) -> None:
    path = nemo_file(tmp_path / "m.nemo", mode=mode)
    state, config = read_nemo(path)
    assert state["w"].tolist() == [1, 1, 1]
    assert config["encoder"]["filters"] == 16, "interpolations are resolved"
    assert config.keys() == {"preprocessor", "encoder", "decoder"}


class _Attack:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_malicious_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    loot = tmp_path / "loot"
    pickle.loads(pickle.dumps(_Attack(loot))).close()
    assert loot.exists(), "the attack works on a plain unpickler"
    loot.unlink()
    with pytest.raises(WeightsError, match="refused: its checkpoint holds more than tensors"):
        read_nemo(nemo_file(tmp_path / "m.nemo", weights={"w": _Attack(loot)}))
    raw = nemo_file(tmp_path / "raw.nemo", **{"./model_weights.ckpt": pickle.dumps(_Attack(loot))})
    with pytest.raises(WeightsError, match=r"refused|damaged"):
        read_nemo(raw)
    assert not loot.exists()


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("encoder", {"_target_": "os.system", "command": "true"}, "refused: its configuration calls 'os.system'"),
        ("encoder", {"jasper": [{"_target_": "builtins.eval"}]}, "refused.*builtins.eval"),
        ("target", "subprocess.Popen", "refused.*subprocess.Popen"),
        ("optim", {"cls": "nemo.collections.asrx.f"}, "refused"),
        ("decoder", {"n": "${oc.env:HOME}"}, "resolver"),
        ("decoder", {"n": "${nowhere}"}, "nowhere"),
        ("decoder", {"n": 10**12}, "too large"),
    ],
)
def test_nemo_configuration_cannot_call_what_it_likes(tmp_path: Path, section: str, value: object, says: str) -> None:
    with pytest.raises(WeightsError, match=says) as caught:
        read_nemo(nemo_file(tmp_path / "m.nemo", config={**CONFIG, section: value}))
    assert "\n" not in str(caught.value)


def test_nemo_yaml_that_grows_is_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    bomb += "preprocessor: {}\nencoder: {}\ndecoder: *a39\n"
    with pytest.raises(WeightsError, match="too many values"):
        read_nemo(nemo_file(tmp_path / "m.nemo", **{"./model_config.yaml": bomb.encode()}))


def test_nemo_members_stay_inside(tmp_path: Path) -> None:
    path = nemo_file(tmp_path / "m.nemo", **{"../../evil.txt": b"x", "/tmp/whowhen-evil": b"x"})
    before = sorted(p for p in tmp_path.rglob("*"))
    read_nemo(path)
    assert sorted(p for p in tmp_path.rglob("*")) == before
    assert not Path("/tmp/whowhen-evil").exists() and not (tmp_path.parent.parent / "evil.txt").exists()


def test_damaged_nemo_archives(tmp_path: Path) -> None:
    good = nemo_file(tmp_path / "m.nemo").read_bytes()
    unreadable, damaged = "is not a NeMo archive we can read: ", r"model_weights\.ckpt is damaged: "
    twice = {"model_config.yaml": b"{}"}, {"model_weights.ckpt": b"other weights"}
    cases = {
        "empty": (b"", unreadable),
        "noise": (b"\x00\x01\x02" * 1000, unreadable),
        "cut in the weights": (good[:2500], unreadable + "unexpected end of data"),
        "no weights": (
            nemo_file(tmp_path / "a.nemo", **{"./model_weights.ckpt": None}).read_bytes(),
            unreadable + r"expected a member model_weights\.ckpt, found none",
        ),
        "no config": (
            nemo_file(tmp_path / "b.nemo", **{"./model_config.yaml": None}).read_bytes(),
            unreadable + r"expected a member model_config\.yaml, found none",
        ),
        "config not yaml": (
            nemo_file(tmp_path / "c.nemo", **{"./model_config.yaml": b"a: [1"}).read_bytes(),
            unreadable + r"model_config\.yaml is not YAML: ",
        ),
        "config a list": (
            nemo_file(tmp_path / "d.nemo", config=[1]).read_bytes(),
            unreadable + r"model_config\.yaml: expected sections preprocessor, encoder and decoder",
        ),
        "weights noise": (
            nemo_file(tmp_path / "e.nemo", **{"./model_weights.ckpt": b"noise" * 99}).read_bytes(),
            f"refused: its checkpoint holds more than tensors|{damaged}",
        ),
        "weights a list": (
            nemo_file(tmp_path / "f.nemo", weights=[torch.ones(2)]).read_bytes(),
            r"expected tensors by name in model_weights\.ckpt, found something else",
        ),
        **{
            f"{name} twice": (
                nemo_file(tmp_path / "g.nemo", **member).read_bytes(),
                unreadable + f"{name} is in it twice",
            )
            for member in twice
            for name in member
        },
    }
    for what, (content, says) in cases.items():
        path = tmp_path / "bad.nemo"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=says) as caught:
            read_nemo(path)
        assert "bad.nemo" in str(caught.value) and "\n" not in str(caught.value), what


@pytest.mark.parametrize("member", ["model_config.yaml", "./model_weights.ckpt"])
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path, member: str) -> None:
    """tar takes the last of two: what was looked at would not be what is used elsewhere."""
    first = nemo_file(tmp_path / "m.nemo")
    with tarfile.open(first) as archive:
        again = archive.extractfile(f"./{member.removeprefix('./')}").read()
    with tarfile.open(first, "a") as archive:
        entry = tarfile.TarInfo(member)
        entry.size = len(again)
        archive.addfile(entry, io.BytesIO(again))
    with pytest.raises(WeightsError, match=f"{member.removeprefix('./')} is in it twice"):
        read_nemo(first)


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [
        ("_MAX_MEMBERS", 1, "more than 1 members"),
        ("_MAX_BYTES", {"model_config.yaml": 10, "model_weights.ckpt": 1 << 20}, "bytes, expected at most 10"),
        ("_MAX_BYTES", {"model_config.yaml": 1 << 9, "model_weights.ckpt": 1 << 9}, "more than 1000 members or 1024"),
    ],
)
def test_an_archive_that_grows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: object, says: str
) -> None:
    path = nemo_file(tmp_path / "m.nemo")
    monkeypatch.setattr(nemo_archive, limit, value)
    with pytest.raises(WeightsError, match=says):
        read_nemo(path)


def test_what_is_called_like_a_member_and_is_no_file_is_passed_over(tmp_path: Path) -> None:
    path = nemo_file(tmp_path / "m.nemo", **{"./model_config.yaml": None})
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo("model_config.yaml")
        entry.type, entry.linkname = tarfile.SYMTYPE, "model_weights.ckpt"
        archive.addfile(entry)
    with pytest.raises(WeightsError, match="expected a member model_config.yaml, found none"):
        read_nemo(path)


@pytest.mark.parametrize(("limit", "refused"), [(2, False), (1, True)])
def test_as_many_members_as_there_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, refused: bool
) -> None:
    path = nemo_file(tmp_path / "m.nemo")
    monkeypatch.setattr(nemo_archive, "_MAX_MEMBERS", limit)
    if refused:
        with pytest.raises(WeightsError, match="more than 1 members"):
            read_nemo(path)
    else:
        assert read_nemo(path)[0]["w"].tolist() == [1, 1, 1]


def test_a_checkpoint_of_a_training_holds_its_tensors_deeper(tmp_path: Path) -> None:
    """Lightning puts them under "state_dict", beside what nobody needs here."""
    path = nemo_file(
        tmp_path / "m.nemo", weights={"epoch": torch.tensor(3), "state_dict": {"w": torch.full((2,), 7.0)}}
    )
    state, _ = read_nemo(path)
    assert {name: value.tolist() for name, value in state.items()} == {"w": [7.0, 7.0]}
    path = nemo_file(tmp_path / "n.nemo", weights={"state_dict": {"w": 3}})
    with pytest.raises(WeightsError, match="expected tensors by name in model_weights.ckpt, found something else"):
        read_nemo(path)


def test_the_largest_configuration_that_is_taken() -> None:
    """10,000 values, 32 deep, whole numbers up to 2**20; what is used twice counts twice."""

    def deep(levels: int) -> object:
        return {"a": deep(levels - 1)} if levels else 1

    shared = [0] * 4998
    for fits, not_quite in (
        ([0] * 9999, [0] * 10_000),
        (deep(32), deep(33)),
        ({"n": 1 << 20}, {"n": (1 << 20) + 1}),
        ({"n": -(1 << 20)}, {"n": -(1 << 20) - 1}),
        ([shared, shared, 0], [shared, shared, 0, 0]),
        ({"x": 1e300, "y": "z" * 100}, {"x": (1, 1 << 21)}),
    ):
        check_config(fits)
        with pytest.raises(ValueError, match="too many values or too deeply nested|is too large for a size"):
            check_config(not_quite)
