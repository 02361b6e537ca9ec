import pydantic
import pytest

from minerua.errors import ConfigError
from minerua.learning.data_config import DataConfig, SplitConfig, faults_of, read_data_config

TABLE = {"path": "a.csv", "inputs": "x", "label": "y"}


def faults(content):
    with pytest.raises(ConfigError, match="the section data cannot be used") as caught:
        read_data_config(content)
    return list(caught.value.faults)


def test_what_is_left_out_has_its_default():
    config = read_data_config({"table": TABLE})
    assert config.table.path == {"all": config.table.path["all"]}
    assert config.table.inputs == ("x",)
    assert (config.most_bad, config.split, config.check) == (0, None, True)


def test_all_faults_are_told_at_once_with_the_nearest_keys():
    found = faults({"tabel": {}, "table": {"path": "a.csv", "imputs": ["x"]}, "images": {}})
    assert "tabel: unknown key; did you mean 'table'?" in found
    assert "table.imputs: unknown key; did you mean 'inputs'?" in found
    assert "images.folder: missing; this key is required" in found
    assert any(fault.startswith("images.labels: missing") for fault in found)


def test_a_key_that_resembles_none_is_told_the_known_ones():
    (fault,) = faults({"table": TABLE, "split": {"zzz": 1}})
    assert fault == "split.zzz: unknown key; known keys: train, validation, test, seed"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"table": {**TABLE, "path": {"valid": "b.csv"}}}, "must be one path, or a mapping of train, validation and"),
        ({"table": TABLE, "labels": {"classes": 0}}, "must be between 1 and 1000000 classes"),
        ({"table": TABLE, "labels": {"classes": [True, False]}}, "YAML reads yes, no, true and false as flags"),
        ({"arrays": {"path": "a.npz", "targets": {"train": "y"}}}, "inputs and targets are names of arrays in it"),
        ({"arrays": {"inputs": {"train": "x"}, "targets": "y"}}, "inputs and targets must name files for the same"),
        ({"table": {"path": "a.csv"}}, "name either columns of numbers in inputs, or columns of text in text"),
        ({"table": {**TABLE, "inputs": ["x", "x"]}}, "a column is named twice"),
        ({"table": {**TABLE, "delimiter": '"'}}, "the delimiter cannot be a quote or a line's end"),
        ({"table": TABLE, "labels": {"classes": 2, "most": 1}}, "classes go with kind: class, and without fewest"),
        ({"table": TABLE, "labels": {"kind": "text", "most": 1}}, "fewest and most go with kind: number"),
        ({"table": TABLE, "labels": {"classes": ["a", "a"]}}, "classes must name at least one label, and each once"),
        ({"images": {"folder": "f", "labels": "l.csv"}, "transforms": {"resize": [0, 1]}}, "resize takes a height and"),
        ({"table": TABLE, "transforms": {"std": 0}}, "std must be above 0"),
        ({"table": TABLE, "transforms": {"dtype": "int64", "scale": 2}}, "int64 is for ids, which are neither scaled"),
        ({"table": TABLE, "tokenizer": {"skill": "t", "mask": True}}, "mask goes with pad: there is nothing to mask"),
        ({"table": TABLE, "split": {"train": 0.5}}, "train, validation and test must sum to 1, found 0.7"),
        ({"table": TABLE, "skill": "s"}, "rows come from one place, found table and skill"),
        ({"table": TABLE, "settings": {"a": 1}}, "settings go with skill"),
        ({"table": TABLE, "most_bad": 1.5}, "most_bad is a count of rows, or a fraction below 1"),
        ({"table": TABLE, "most_bad": True}, "must be a number"),
        ({"table": TABLE, "tokenizer": {"skill": "t"}}, "a tokenizer goes with columns of text: table.text"),
        ({"table": TABLE, "transforms": {"resize": [2, 2]}}, "resize goes with images"),
        ({"table": {"path": "a", "text": "t", "label": "y"}, "transforms": {"scale": 2}}, "text stays text, or"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(content, said):
    assert any(said in fault for fault in faults(content)), faults(content)


def test_a_count_of_classes_names_them():
    assert read_data_config({"table": TABLE, "labels": {"classes": 3}}).labels.classes == ("0", "1", "2")
    assert read_data_config({"table": TABLE, "labels": {"classes": [4, "x"]}}).labels.classes == ("4", "x")


def test_splits_without_a_share_are_left_out():
    assert SplitConfig(train=0.9, validation=0, test=0.1).fractions == {"train": 0.9, "test": 0.1}


def test_a_configuration_survives_its_way_through_json():
    config = read_data_config({"table": {**TABLE, "path": {"train": "a.csv", "test": "b.csv"}}})
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


def test_faults_of_a_section_within_another_model_have_their_place():
    class Outer(pydantic.BaseModel):
        data: DataConfig | None

    with pytest.raises(pydantic.ValidationError) as caught:
        Outer.model_validate({"data": {"transforms": {"augment": {"flipp": 1}}}})
    assert faults_of(caught.value, Outer) == ["data.transforms.augment.flipp: unknown key; did you mean 'flip'?"]
