import io
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig
from minerua.learning.rows import BadRows
from minerua.learning.sources import arrays as module
from minerua.learning.sources.arrays import ArrayRows, array_file, in_memory
from minerua.weights import write_checkpoint

X, Y = np.arange(24, dtype=np.float64).reshape(8, 3), np.arange(8) % 2


def rows(x, y, *, dtype="float32", **labels):
    targets = None if y is None else in_memory(y, "y")
    return ArrayRows(in_memory(x, "x"), targets, LabelsConfig(**labels), dtype=dtype)


def saved(folder, kind):
    if kind == "npy":
        np.save(folder / "x.npy", X)
        return folder / "x.npy", None
    if kind == "safetensors":
        write_checkpoint(folder / "a.safetensors", {"x": X})
        return folder / "a.safetensors", "x"
    (np.savez if kind == "npz" else np.savez_compressed)(folder / "a.npz", y=Y, x=X)
    return folder / "a.npz", "x"


@pytest.mark.parametrize("kind", ["npy", "npz", "npz compressed", "safetensors"])
def test_an_array_on_disk_is_read_and_not_written(tmp_path, kind):
    found = pickle.loads(pickle.dumps(array_file(*saved(tmp_path, kind))))
    assert (found.array == X).all()
    assert not found.array.flags.writeable


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_an_array_that_is_stored_as_it_is_stays_on_disk(tmp_path, kind):
    array = array_file(*saved(tmp_path, kind)).array
    while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    assert isinstance(array, np.memmap) or "mmap" in repr(type(getattr(array.base, "obj", array.base)))


def test_fortran_order_is_kept(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(X))
    assert (array_file(tmp_path / "a.npz", "x").array == X).all()


def test_usable_rows_are_numbered_around_the_bad_ones():
    x = X.copy()
    x[2, 1], x[5, 0] = np.nan, 1e300
    bad, source = BadRows(), rows(x, Y)
    scanned = source.scan(bad)
    assert [str(row) for row in bad.listed] == ["x[2]: not finite: 1 of 3 inputs", "x[5]: not finite: 1 of 3 inputs"]
    assert [source.read(i)[0][0] for i in range(6)] == [0, 3, 9, 12, 18, 21]
    assert [scanned.names[code] for code in scanned.codes] == ["0", "1", "1", "0", "0", "1"]
    assert source.place(5) == "x[7]"


def test_blocks_of_any_size_find_the_same(monkeypatch):
    whole = rows(X, Y).scan(BadRows())
    monkeypatch.setattr(module, "_BLOCK_BYTES", 50)
    assert (rows(X, Y).scan(BadRows()).hashes == whole.hashes).all()


def test_whole_numbers_are_classes_and_fractions_are_numbers():
    assert rows(X, Y)._labels.kind == "class"
    assert rows(X, np.array(["a", "b"] * 4))._labels.kind == "class"
    assert rows(X, Y / 3)._labels.kind == "number"
    assert rows(X, X.astype(int))._labels.kind == "number"


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.tensor(X).bfloat16(), torch.tensor(Y)),
        (torch.tensor(X, requires_grad=True), Y.tolist()),
        (X.astype(ml_dtypes.bfloat16), Y),
        (X.astype(np.uint8), Y),
        (X.tolist(), Y),
    ],
)
def test_tensors_lists_and_narrow_types_become_float32(x, y):
    source = rows(x, y)
    source.scan(BadRows())
    assert source.read(3)[0].dtype == np.float32
    assert source.read(3)[0].tolist() == [9, 10, 11]


@pytest.mark.parametrize(
    ("x", "y", "labels", "said"),
    [
        (X, Y[:5], {}, "x has 8 rows, y has 5"),
        (np.array(["a", "b"]), [0, 1], {}, "x: inputs are rows of numbers, found shape [2] of <U1"),
        (X, None, {}, "targets: missing; name an array, or set labels.kind to inputs"),
        (X, Y.astype(complex), {}, "y: targets are numbers or texts, found shape [8] of complex128"),
        (X, Y, {"dtype": "int64"}, "x: dtype int64 is for whole numbers, found float64"),
    ],
)
def test_arrays_that_make_no_rows_are_refused(x, y, labels, said):
    with pytest.raises(ConfigError, match="the arrays cannot be used as rows") as caught:
        rows(x, y, **labels)
    assert said in caught.value.faults


def test_what_is_no_array_is_refused():
    with pytest.raises(ConfigError, match="x is no array of rows: found int of dtype int64"):
        in_memory(3, "x")
    with pytest.raises(ConfigError, match="x is no array: setting an array element with a sequence"):
        in_memory([[1], [1, 2]], "x")


# ── files that lie ───────────────────────────────────────────────────────────────────────────────────────────────────


def npz(path, content, **settings):
    with zipfile.ZipFile(path, "w", **settings) as archive:
        archive.writestr("x.npy", content)
    return path


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_a_missing_file_and_a_missing_array_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none.npy: No such file"):
        array_file(tmp_path / "none.npy", None)
    with pytest.raises(ConfigError, match="no array is named 'xx'; did you mean 'x'"):
        array_file(npz(tmp_path / "a.npz", npy(X)), "xx")
    write_checkpoint(tmp_path / "a.safetensors", {"x": X})
    with pytest.raises(ConfigError, match="'xx'"):
        array_file(tmp_path / "a.safetensors", "xx")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_what_holds_no_array_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"nonsense" * 100)
    with pytest.raises(ConfigError, match="holds no array that can be read"):
        array_file(tmp_path / name, "x")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_pickle_is_never_opened(tmp_path, name):
    content = npy(np.array([{"a": 1}], object))
    (tmp_path / "a.npy").write_bytes(content)
    npz(tmp_path / "a.npz", content)
    said = "Array can't be memory-mapped: Python objects" if name == "a.npy" else "which only pickle can read"
    with pytest.raises(ConfigError, match="holds no array that can be read") as caught:
        array_file(tmp_path / name, "x")
    assert said in str(caught.value.__cause__)
    assert "array x holds Python objects, which only pickle can read" in str(caught.value.__cause__) or name == "a.npy"


def test_an_array_that_claims_more_than_it_has_is_refused(tmp_path):
    content = npy(np.zeros(4)).replace(b"(4,)", b"(9,)")
    with pytest.raises(ConfigError, match="array x claims 72 bytes and has 32"):
        array_file(npz(tmp_path / "a.npz", content), "x")


def test_a_compressed_array_beyond_all_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_INFLATED_BYTES", 1000)
    path = npz(tmp_path / "a.npz", npy(np.zeros(10_000)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(
        ConfigError, match=r"x.npy takes 80128 bytes of memory, more than 1000; save it with numpy.savez"
    ):
        array_file(path, "x")
