import json
import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from minerua.errors import BrokenPlugin, ConfigError
from minerua.learning.data_config import read_data_config
from minerua.learning.datasets import DatasetManager
from minerua.learning.rows import RowError
from minerua.values import Skill

X, Y = np.arange(400.0).reshape(200, 2), np.arange(200) % 3


def prepared(section, folder=".", skills=None, seed=0, dataset=None):
    return DatasetManager(read_data_config(section), skills, folder, seed, dataset=dataset).prepare()


def contents(rows):
    return [tuple(np.ravel(rows[i][0])) for i in range(len(rows))]


def write_csv(path, numbers):
    path.write_text("x,y\n" + "".join(f"{k},c{k % 3}\n" for k in numbers))


CSV = {"inputs": "x", "label": "y"}


# ── every source ─────────────────────────────────────────────────────────────────────────────────────────────────────


def npy_files(folder):
    np.save(folder / "x.npy", X[:, :1])
    np.save(folder / "y.npy", np.char.add("c", Y.astype(str)))
    return {"arrays": {"inputs": "x.npy", "targets": "y.npy"}}


def npz_file(folder):
    np.savez(folder / "a.npz", a=X[:, :1], b=np.char.add("c", Y.astype(str)))
    return {"arrays": {"path": "a.npz", "inputs": "a", "targets": "b"}}


def csv_file(folder):
    (folder / "a.csv").write_text("x,y\n" + "".join(f"{2 * k},c{k % 3}\n" for k in range(200)))
    return {"table": {"path": "a.csv", "inputs": ["x"], "label": "y"}}


def jsonl_file(folder):
    rows = ({"x": [2 * k], "y": f"c{k % 3}"} for k in range(200))
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"table": {"path": "a.jsonl", "inputs": ["x"], "label": "y"}}


def parquet_file(folder):
    import pyarrow as arrow
    from pyarrow import parquet

    columns = {"x": [[2.0 * k] for k in range(200)], "y": [f"c{k % 3}" for k in range(200)]}
    parquet.write_table(arrow.table(columns), folder / "a.parquet")
    return {"table": {"path": "a.parquet", "inputs": ["x"], "label": "y"}}


def image_files(folder):
    from PIL import Image

    (folder / "pictures").mkdir()
    for k in range(200):
        Image.fromarray(np.full((2, 2), k, np.uint8)).save(folder / "pictures" / f"{k}.png")
    (folder / "a.csv").write_text("file,label\n" + "".join(f"{k}.png,c{k % 3}\n" for k in range(200)))
    return {"images": {"folder": "pictures", "labels": "a.csv", "mode": "L"}}


@pytest.mark.parametrize("source", [npy_files, npz_file, csv_file, jsonl_file, parquet_file, image_files])
def test_every_source_keeps_to_the_contract(tmp_path, source):
    splits = prepared(source(tmp_path), tmp_path)
    assert splits.classes == ("c0", "c1", "c2")
    assert sum(splits.lengths.values()) == 200
    seen = []
    for rows in (splits.train, splits.validation, splits.test):
        assert rows.pure
        for i in range(len(rows)):
            inputs, target = rows[i]
            assert inputs.dtype == np.float32
            seen.append((float(inputs.ravel()[0]), target))
            assert len(rows.key(i)) == 16
    scale = 1 / 255 if source is image_files else 2
    assert np.array(sorted(seen)) == pytest.approx(np.array([(k * scale, k % 3) for k in range(200)]))


def batches(rows, workers, start="fork"):
    context = multiprocessing.get_context(start) if workers else None
    return list(DataLoader(rows, batch_size=16, num_workers=workers, multiprocessing_context=context))


@pytest.mark.parametrize("source", [npz_file, csv_file, jsonl_file, parquet_file, image_files])
def test_two_workers_read_what_one_process_reads(tmp_path, source):
    train = prepared(source(tmp_path), tmp_path).train
    train[0]  # so that a file is open before the workers begin
    for (x, y), (other_x, other_y) in zip(batches(train, 0), batches(train, 2), strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


@pytest.mark.slow
def test_workers_that_share_nothing_read_the_same(tmp_path):
    train = prepared(csv_file(tmp_path), tmp_path).train
    train[0]
    for (x, _), (other, _) in zip(batches(train, 0), batches(train, 2, "spawn"), strict=True):
        assert torch.equal(x, other)


# ── splits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_that_are_added_and_reordered_move_no_other(tmp_path):
    write_csv(tmp_path / "a.csv", range(200))
    write_csv(tmp_path / "b.csv", np.random.default_rng(0).permutation(300))
    before, after = (prepared({"table": {"path": name, **CSV}}, tmp_path) for name in ("a.csv", "b.csv"))
    for split in ("train", "validation", "test"):
        assert set(contents(getattr(before, split))) == {row for row in contents(getattr(after, split)) if row[0] < 200}


def test_copies_of_a_row_lie_in_one_split():
    splits = prepared({}, dataset=(np.repeat(X[:50], 3, axis=0), np.arange(150) % 2))
    parts = [set(contents(rows)) for rows in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == 50
    assert splits.report.duplicates == 100


def test_the_deal_does_not_depend_on_the_run_s_seed_unless_that_is_asked_for():
    first, second = (prepared({}, seed=seed, dataset=(X, Y)) for seed in (1, 2))
    assert first.digest == second.digest
    own = {"split": {"seed": None}}
    first, second = (prepared(own, seed=seed, dataset=(X, Y)) for seed in (1, 2))
    assert first.digest != second.digest


def test_named_files_are_the_splits_and_copies_across_them_are_told(tmp_path):
    write_csv(tmp_path / "a.csv", range(30))
    write_csv(tmp_path / "b.csv", range(20, 40))
    splits = prepared({"table": {"path": {"train": "a.csv", "test": "b.csv"}, **CSV}}, tmp_path)
    assert splits.lengths == {"train": 30, "test": 20}
    assert splits.validation is None
    assert splits.report.overlaps == {"test": 10}
    assert "10 rows of test also stand in train" in splits.report.notes


def test_a_part_of_the_train_file_can_be_set_aside_beside_a_test_file(tmp_path):
    write_csv(tmp_path / "a.csv", range(100))
    write_csv(tmp_path / "b.csv", range(100, 110))
    section = {"table": {"path": {"train": "a.csv", "test": "b.csv"}, **CSV}}
    splits = prepared({**section, "split": {"train": 0.8, "validation": 0.2, "test": 0}}, tmp_path)
    assert splits.lengths["train"] + splits.lengths["validation"] == 100
    assert splits.lengths["test"] == 10
    with pytest.raises(ConfigError, match="sets rows aside for test, which has a file of its own; set its share to 0"):
        prepared({**section, "split": {"train": 0.8, "validation": 0.1, "test": 0.1}}, tmp_path)


def test_an_empty_split_is_refused():
    with pytest.raises(
        ConfigError, match=r"would be empty: 3 usable rows were dealt out by their keys; give more rows"
    ):
        prepared({}, dataset=(X[:3], Y[:3]))
    assert prepared({"split": {"train": 1, "validation": 0, "test": 0}}, dataset=(X[:3], Y[:3])).test is None


def test_the_digest_names_rows_and_classes():
    assert prepared({}, dataset=(X, Y)).digest == prepared({}, dataset=(X, Y)).digest
    assert prepared({}, dataset=(X, Y)).digest != prepared({"labels": {"classes": 4}}, dataset=(X, Y)).digest
    assert prepared({}, dataset=(X, Y)).digest != prepared({}, dataset=(X[:-1], Y[:-1])).digest


# ── bad rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_bad_row_is_an_error_that_names_it(tmp_path):
    write_csv(tmp_path / "a.csv", range(50))
    with open(tmp_path / "a.csv", "a") as file:
        file.write("nan,c0\n1\n")
    section = {"table": {"path": "a.csv", **CSV}}
    with pytest.raises(
        ConfigError, match=r"2 of 52 rows are bad \(1 not finite, 1 wrong number of columns\)"
    ) as caught:
        prepared(section, tmp_path)
    assert caught.value.faults[0] == "a.csv:52: not finite: 1 of 1 inputs"
    assert "data.most_bad allows 0 of them; mend them, or raise it" in caught.value.message
    for most in (2, 0.05):
        report = prepared({**section, "most_bad": most}, tmp_path).report
        assert (report.rows, report.bad, sum(report.splits.values())) == (52, 2, 50)
    for most in (1, 0.03):
        with pytest.raises(ConfigError, match="rows are bad"):
            prepared({**section, "most_bad": most}, tmp_path)


def test_many_bad_rows_are_listed_up_to_a_hundred():
    with pytest.raises(ConfigError) as caught:
        prepared({}, dataset=(np.full((300, 2), np.inf), np.zeros(300, int)))
    assert len(caught.value.faults) == 101
    assert caught.value.faults[-1] == "and 200 more"


def test_classes_of_all_splits_are_numbered_together(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,10\n2,9\n")
    (tmp_path / "b.csv").write_text("x,y\n3,8\n4,10\n")
    splits = prepared({"table": {"path": {"train": "a.csv", "test": "b.csv"}, **CSV}}, tmp_path)
    assert splits.classes == ("8", "9", "10")
    assert [splits.train[i][1] for i in range(2)] == [2, 1]
    assert [splits.test[i][1] for i in range(2)] == [0, 2]


# ── what rows become ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_the_train_split_is_augmented():
    splits = prepared({"transforms": {"augment": {"noise": 1}}}, dataset=(X, Y))
    row, target = splits.train.example(3, torch.Generator().manual_seed(0))
    again, _ = splits.train.example(3, torch.Generator().manual_seed(0))
    assert (row == again).all()
    assert (row != splits.train[3][0]).all()
    assert target == splits.train[3][1]
    assert len(splits.train.key(3)) == 16
    assert not hasattr(splits.validation, "example")


def test_transforms_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="the transforms do not fit the rows") as caught:
        prepared({"transforms": {"mean": [1, 2, 3]}}, dataset=(X, Y))
    assert caught.value.faults == ("transforms.mean has 3 numbers, the rows' first axis has 2",)


def test_inputs_may_be_their_own_targets(tmp_path):
    np.save(tmp_path / "x.npy", X)
    splits = prepared({"arrays": {"inputs": "x.npy"}, "labels": {"kind": "inputs"}}, tmp_path)
    inputs, target = splits.train[0]
    assert (inputs == target).all()
    assert splits.classes is None


def letters(text):
    return {"ids": [ord(letter) for letter in text]}


def test_text_becomes_padded_ids(tmp_path):
    rows = "".join(json.dumps({"t": "x" * (1 + k), "y": k % 2}) + "\n" for k in range(40))
    (tmp_path / "a.jsonl").write_text(rows)
    section = {"table": {"path": "a.jsonl", "text": "t", "label": "y"}}
    assert set(prepared(section, tmp_path).train[0][0]) == {"x"}
    tokenizer = {"skill": "letters", "pad": 0, "most": 10}
    train = prepared({**section, "tokenizer": tokenizer}, tmp_path, {"letters": Skill("letters", call=letters)}).train
    batches = list(DataLoader(train, batch_size=8, collate_fn=train.collate))
    assert max(inputs.shape[1] for inputs, _ in batches) == 10
    assert batches[0][0].dtype == torch.int64


def test_a_row_that_cannot_be_used_any_more_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"t": f"{k}", "y": 0}) + "\n" for k in range(9)))
    section = {
        "table": {"path": "a.jsonl", "text": "t", "label": "y"},
        "split": {"train": 1, "validation": 0, "test": 0},
        "tokenizer": {"skill": "letters"},
    }
    train = prepared(section, tmp_path, {"letters": Skill("letters", call=lambda text: {"ids": []})}).train
    with pytest.raises(RowError, match=r"a.jsonl, byte 38: no ids: the tokenizer makes nothing of 2"):
        train[2]


# ── datasets made in Python ──────────────────────────────────────────────────────────────────────────────────────────


class Drawn:
    """Has everything that a dataset may have."""

    pure = True

    def __len__(self):
        return 100

    def __getitem__(self, i):
        return np.float32(i), i % 2

    def example(self, i, generator):
        return np.float32(i + float(torch.rand((), generator=generator))), i % 2

    def collate(self, rows):
        return len(rows)


def test_what_a_dataset_offers_is_offered_on():
    splits = prepared({}, dataset=Drawn())
    train = splits.train
    assert train.pure
    assert train.collate([1, 2]) == 2
    place = int(train[5][0])
    assert place < train.example(5, torch.Generator().manual_seed(0))[0] < place + 1
    assert len(train.key(5)) == 16


def test_picked_rows_can_be_sent_to_another_process():
    import pickle

    train = prepared({}, dataset=Drawn()).train
    copy = pickle.loads(pickle.dumps(train))
    assert [copy[i] for i in range(len(copy))] == [train[i] for i in range(len(train))]
    assert copy.key(3) == train.key(3)
    assert copy.example(3, torch.Generator().manual_seed(0)) == train.example(3, torch.Generator().manual_seed(0))


def test_a_torch_dataset_offers_no_more_than_it_has():
    dataset = TensorDataset(torch.tensor(X), torch.tensor(Y))
    train = prepared({}, dataset=dataset).train
    assert train.pure
    assert not hasattr(train, "example")
    assert train.collate is None
    assert not prepared({}, dataset=Impure(X.tolist())).train.pure


class Impure:
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i], 0


def test_a_plugin_s_skill_makes_the_dataset(tmp_path):
    skill = Skill("rows", call=lambda count: {"dataset": {"inputs": X[:count], "targets": Y[:count]}})
    splits = prepared({"skill": "rows", "settings": {"count": 90}}, tmp_path, {"rows": skill})
    assert sum(splits.lengths.values()) == 90


def test_splits_may_come_from_python():
    splits = prepared({}, dataset={"train": (X, Y), "test": TensorDataset(torch.tensor(X), torch.tensor(Y))})
    assert splits.lengths == {"train": 200, "test": 200}


def test_a_skill_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(BrokenPlugin, match="data needs a mapping with the key 'dataset'"):
        prepared({"skill": "rows"}, tmp_path, {"rows": Skill("rows", call=dict)})


def test_a_dataset_of_its_own_rows_takes_no_transforms():
    with pytest.raises(
        ConfigError, match="transforms and tokenizer go with rows that minerua reads; dataset makes rows"
    ):
        prepared({"transforms": {"scale": 2}}, dataset=Drawn())


def test_rows_come_from_one_place(tmp_path):
    with pytest.raises(ConfigError, match="leave out the dataset, or the source in the section data"):
        prepared({"skill": "rows"}, dataset=(X, Y))
    with pytest.raises(ConfigError, match="data names no rows: set one of arrays, table, images and skill"):
        prepared({})


def test_missing_files_and_columns_are_told_at_once(tmp_path):
    write_csv(tmp_path / "b.csv", range(3))
    section = {"table": {"path": {"train": "a.csv", "test": "b.csv"}, "inputs": ["x", "z"], "label": "w"}}
    with pytest.raises(ConfigError, match="the data cannot be read") as caught:
        prepared(section, tmp_path)
    assert [fault.partition(" (")[0] for fault in caught.value.faults] == [
        "train: cannot read a.csv: No such file or directory",
        "test: b.csv has not the columns that it needs: no column is named z; found: x, y",
        "test: b.csv has not the columns that it needs: no column is named w; found: x, y",
    ]


def test_a_table_without_a_label_says_so(tmp_path):
    write_csv(tmp_path / "a.csv", range(3))
    with pytest.raises(ConfigError) as caught:
        prepared({"table": {"path": "a.csv", "inputs": "x"}}, tmp_path)
    assert "table.label: missing; name the column of the target, or set labels.kind to inputs" in str(caught.value)


def test_torch_is_not_needed_to_look_through_data(run_python):
    script = "import sys, minerua.learning.datasets; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    assert run_python("-c", script).stdout == "False False\n"
