"""Strangers' stores, exports, manifests and lists: whatever they hold is one clear line or data, never memory or a crash.

Every example runs with little memory to spare: a size that is only claimed must not be allocated.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import featstore
from evaluation.trials import read_trials
from featstore import StoreError, Turn
from featstore.corpora.manifest import read_manifest
from featstore.corpora.rttm import read_rttm
from featstore.exchange import export_hdf5, import_hdf5
from featstore.remote.client import Remote
from featstore.store import footer, layout, metadata
from featstore.store.reader import store_utterances
from featstore.store.tables import read_table
from featstore.types import check_id
from featstore.upkeep.verify import verify
from tests.featstore.store.test_store import fill, spec, utterance

SPARE_BYTES = 2 << 30

# The same examples every time: a run on another machine tests what this one did.
fuzz = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([2**31, 2**62, -1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """No more address space than now and `SPARE_BYTES`."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux: elsewhere a process's memory cannot be limited")
    pa.array([1]), np.ones(1) @ np.ones(1)  # what the libraries set up once
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a few parts, two features, turns; small, as every example has a copy of it."""
    store = tmp_path_factory.mktemp("fuzz") / "s"
    fill(store, count=4, part_bytes=600)
    with featstore.writer(store, spec("titanet", 4, hop=2)) as out:
        out.add(
            utterance("talk/ü", speaker=None, turns=(Turn(0.1, 0.7, "a"), Turn(0.2, 0.9, "b"))), np.ones((3, 4), "f4")
        )
    return store


def read_all(store: Path) -> None:
    opened = featstore.open(store, verify=True)
    for feature in opened.features:
        for id in opened.index(feature).rows:
            opened.frames(feature, id)
            opened.pooled(feature, [id])
            opened.pooled(feature, [id], "std")
    for _ in store_utterances(opened):
        pass
    opened.select(split="train")


def one_line_or_data(action: Callable[[], object], kinds: type[Exception] | tuple[type[Exception], ...]) -> bool:
    """True if there was data; any other exception than these is a defect."""
    try:
        action()
    except kinds as error:
        assert str(error) and "\n" not in str(error)
        return False
    return True


def replaced(store: Path, name: str, data: bytes) -> Path:
    """A copy of a store with one other file, `damaged/` and such not kept."""
    copy = store.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(store, copy, copy_function=os.link)
    (copy / name).unlink()
    (copy / name).write_bytes(data)
    return copy


def store_files(store: Path) -> list[str]:
    names = [p.relative_to(store).as_posix() for p in store.rglob("*") if p.suffix in (".json", ".parquet")]
    return sorted(names, key=lambda name: (name.count("/"), Path(name).suffix, name))


@fuzz
@given(st.data())
def test_metadata_with_other_bytes(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(store_files(whole)))
    raw = bytearray((whole / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # The last bytes of a Parquet file are its metadata.
        at = data.draw(st.integers(0, len(raw) - 1) | st.integers(max(0, len(raw) - 400), len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    store = replaced(whole, name, bytes(raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))]))
    one_line_or_data(lambda: read_all(store), (StoreError, KeyError))
    if bytes((whole / name).read_bytes()) != (store / name).read_bytes() and layout_is_read(store):
        assert verify(store).damaged or name.startswith("utterances/"), name


def layout_is_read(store: Path) -> bool:
    return one_line_or_data(lambda: metadata.check_version(store), StoreError)


@fuzz
@given(st.data())
def test_metadata_with_other_values(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([n for n in store_files(whole) if n.endswith(".json")]))
    tree = json.loads((whole / name).read_bytes())
    node, path = tree, []
    while isinstance(node, dict | list) and node and (not path or data.draw(st.booleans())):
        path.append(data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))))
        node = node[path[-1]]
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(json_values)
    store = replaced(whole, name, json.dumps(tree).encode())
    one_line_or_data(lambda: read_all(store), (StoreError, KeyError))
    if layout_is_read(store):
        verify(store)


rows = st.fixed_dictionaries(
    {
        "id": st.none() | st.text(max_size=4) | st.sampled_from(["u0", "u1", "a" * 5000]),
        "first_frame": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 40),
        "num_frames": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 40),
    }
)


@fuzz
@given(st.lists(rows, max_size=4), st.sampled_from([pa.int64(), pa.int32(), pa.float64(), pa.string()]))
@example([{"id": "u0", "first_frame": 0, "num_frames": 2**31}] * 4, pa.int64())
@example([{"id": "u0", "first_frame": 0, "num_frames": 2**62}, {"id": "u1", "first_frame": 2**62, "num_frames": 2**62}], pa.int64())  # fmt: skip
def test_an_index_of_anything(whole: Path, tmp_path_factory: pytest.TempPathFactory, index: list, kind: Any) -> None:
    name = next(n for n in store_files(whole) if n.startswith("index/mimi/"))
    try:
        columns = {key: [row[key] for row in index] for key in ("id", "first_frame", "num_frames")}
        columns = {k: v if k == "id" else pa.array(v, pa.int64()).cast(kind) for k, v in columns.items()}
    except pa.ArrowException:
        return  # the number has no place in this type
    path = tmp_path_factory.mktemp("index") / "i.parquet"
    pq.write_table(pa.table(columns), path)
    store = replaced(whole, name, path.read_bytes())
    one_line_or_data(lambda: read_all(store), (StoreError, KeyError))
    assert verify(store).damaged


def facts(path: Path, rows: int, **columns: pa.Array) -> Path:
    """A Parquet file with the columns of an utterance table, these ones replaced."""
    usual = {"id": [f"u{i}" for i in range(rows)], "recording": "r", "speaker": None, "split": "", "duration": 1.0}
    usual |= {"turns": [], "source": "a.wav", "start": 0.0}
    full = {
        f.name: columns.get(f.name, pa.array(v if f.name == "id" else [v] * rows, f.type))
        for f, v in zip(layout.UTTERANCE_SCHEMA, usual.values(), strict=True)
    }
    pq.write_table(pa.table(full), path)
    return path


def always(value: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))


def turns(speaker: pa.Array) -> pa.ListArray:
    """One utterance whose turns are as many as speakers."""
    start = pa.array(np.zeros(len(speaker)))
    return pa.ListArray.from_arrays(
        [0, len(speaker)], pa.StructArray.from_arrays([start, start, speaker], ["start", "end", "speaker"])
    )


def test_a_footer_says_what_pyarrow_reads_in_it() -> None:
    """Columns of all groups with their values, their bytes without compression, and whether they have a dictionary."""
    table = pa.table(
        {"id": [f"utterance {k}" for k in range(999)], "turns": [[{"end": 1.0}] * (k % 3) for k in range(999)]}
    )
    out = pa.BufferOutputStream()
    pq.write_table(table, out, row_group_size=400, compression="zstd", use_dictionary=["id"])
    data = out.getvalue().to_pybytes()
    told = pq.ParquetFile(pa.BufferReader(data)).metadata
    expected = [told.row_group(g).column(c) for g in range(3) for c in range(2)]
    assert footer.read_columns(data) == [
        footer.Column(c.path_in_schema, c.num_values, c.total_uncompressed_size, c.has_dictionary_page)
        for c in expected
    ]
    assert any(c.total_compressed_size < c.total_uncompressed_size for c in expected)


def test_a_short_table_does_not_become_gigabytes(tmp_path: Path) -> None:
    """Parquet keeps a value once for every row that has it: kilobytes could spell out terabytes."""
    path = tmp_path / "p"
    assert len(read_table(facts(path, 3), layout.UTTERANCE_SCHEMA)) == 3
    long = "x" * 200_000
    for rows, columns in (
        (50_000, {"recording": always(long, 50_000)}),
        (1, {"turns": turns(always("s", 3_000_000))}),
        (1, {"turns": turns(always(long, 20_000))}),
    ):
        facts(path, rows, **columns)
        assert path.stat().st_size < 1_000_000
        with pytest.raises(StoreError, match="claim|bytes; up to|bytes of text"):
            read_table(path, layout.UTTERANCE_SCHEMA)
    zeros = np.zeros(2_400_000, np.int64)
    table = pa.table([always("u", len(zeros)), zeros, zeros], names=layout.INDEX_SCHEMA.names)
    pq.write_table(table, path, row_group_size=400_000)  # each group by itself is within bounds
    with pytest.raises(StoreError, match="claim"):
        read_table(path, layout.INDEX_SCHEMA)
    table = pa.table([always("u" * 4000, 600_000), zeros[:600_000], zeros[:600_000]], names=layout.INDEX_SCHEMA.names)
    pq.write_table(table, path)  # one text that stands often: 2.4 GB once spelt out
    with pytest.raises(StoreError, match="bytes of text"):
        read_table(path, layout.INDEX_SCHEMA)


# ---- HDF5


@pytest.fixture(scope="module")
def exported(whole: Path) -> Path:
    export_hdf5(whole, whole.parent / "s.h5")
    return whole.parent / "s.h5"


@pytest.mark.parametrize(
    "what", ["external link", "soft link", "virtual", "external data", "dtype", "one text for all"]
)
def test_a_file_that_points_elsewhere(exported: Path, tmp_path: Path, what: str) -> None:
    secret, path = tmp_path / "secret.h5", tmp_path / "x.h5"
    shutil.copy(exported, path)
    with h5py.File(exported) as source, h5py.File(secret, "w") as other:
        source.copy("features/mimi/frames", other, "frames")
        rows = source["features/mimi/frames"].shape[0]
    (tmp_path / "raw").write_bytes(os.urandom(rows * 16))
    with h5py.File(path, "r+") as file:
        group = file["features/mimi"]
        if what == "dtype":
            num = group["num_frames"][:].astype("f8")
            del group["num_frames"]
            group["num_frames"] = num
        elif what == "one text for all":
            first, raw = file["utterances"].id.get_offset(), bytearray(path.read_bytes())
        else:
            del group["frames"]
            if what == "external link":
                group["frames"] = h5py.ExternalLink(str(secret), "frames")
            elif what == "soft link":
                group["frames"] = h5py.SoftLink("/features/titanet/frames")
            elif what == "virtual":
                virtual = h5py.VirtualLayout(shape=(rows, 8), dtype="f2")
                virtual[:] = h5py.VirtualSource(str(secret), "frames", shape=(rows, 8))
                group.create_virtual_dataset("frames", virtual)
            else:
                group.create_dataset("frames", (rows, 8), "f2", external=[(str(tmp_path / "raw"), 0, rows * 16)])
    if what == "one text for all":
        raw[first : first + 4] = (2**31).to_bytes(4, "little")
        path.write_bytes(raw)
    assert not one_line_or_data(lambda: import_hdf5(path, tmp_path / "t"), StoreError)
    assert not (tmp_path / "t" / "index").exists()


# ---- texts


@fuzz
@given(st.text(max_size=20) | st.text(alphabet="./\\:aC\n\x7f\x85\ud800", max_size=9))
@example("../x")
@example("C:\\x")
@example("a/../../x")
def test_ids_stay_below_their_root(id: str) -> None:
    if one_line_or_data(lambda: check_id(id), ValueError):
        for separator in ("/", "\\"):
            inside = os.path.normpath(os.path.join("/a/store", id.replace(separator, "/")))
            assert inside == "/a/store" or inside.startswith("/a/store/")
        assert id.encode() and not any(c in id for c in "\n\r\0\x7f\x85")


keys = ["audio_filepath", "offset", "duration", "speaker", "label", "utt_id", "session_id", "split", "rttm_filepath"]
entries = st.dictionaries(st.sampled_from(keys) | st.text(max_size=5), json_values, max_size=5)
usual = st.fixed_dictionaries(
    {"audio_filepath": st.sampled_from(["a.wav", "../a.wav", "/etc/passwd", "b/../../a.wav"])},
    optional={"utt_id": st.text(max_size=5), "offset": json_values, "duration": json_values, "label": json_values},
)


@fuzz
@given(st.lists(entries | usual, max_size=3), st.binary(max_size=12))
def test_a_manifest_of_anything(tmp_path_factory: pytest.TempPathFactory, lines: list[dict], tail: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed" / "m.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + tail)
    one_line_or_data(lambda: read_manifest(path), ValueError)

    def within() -> None:
        for u in read_manifest(path, audio_root=path.parent):
            assert Path(u.audio).resolve().is_relative_to(path.parent.resolve())

    one_line_or_data(within, ValueError)


@fuzz
@given(
    st.text(max_size=60) | st.lists(st.sampled_from(["SPEAKER", "a", "1", "-1", "nan", "1e400", "<NA>"])).map(" ".join)
)
def test_rttm_and_trials_of_anything(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    one_line_or_data(lambda: read_rttm(path), ValueError)
    one_line_or_data(lambda: read_trials(path), ValueError)


@fuzz
@given(json_values | st.fixed_dictionaries({"files": json_values | st.dictionaries(st.text() | st.just("index/../x"), json_values)}))  # fmt: skip
def test_a_listing_of_anything(listing: Any) -> None:
    remote = object.__new__(Remote)
    remote.url, remote.web = "https://somewhere", True
    remote.read = lambda path, most: json.dumps(listing).encode()
    if one_line_or_data(lambda: remote.files(), StoreError):
        assert not any(".." in path.split("/") or path.startswith("/") for path in remote.files())
