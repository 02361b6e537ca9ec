import doctest
import os
import resource
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from minerua.errors import CheckpointError, StorageError
from minerua.values import Genome
from minerua.weights import GenomeStore, store

SPACE = "5" * 32


def genome(seed=0, *, size=1000, dtype=np.float32):
    values = np.random.default_rng(seed).normal(size=size).astype(dtype)
    values.flags.writeable = False
    return Genome(SPACE, values)


@pytest.fixture
def shop(tmp_path):
    return GenomeStore(tmp_path / "genomes")


def files(shop):
    return sorted(path.name for path in shop.folder.iterdir()) if shop.folder.exists() else []


def test_the_example_of_the_docstring_holds():
    assert doctest.testmod(store).failed == 0


# ── there and back ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_genome_comes_back_as_it_went_at_its_true_size(shop, dtype):
    one = genome(dtype=dtype)
    shop.add(one)
    assert files(shop) == [f"{one.digest}.genome"]
    assert shop.path(one.digest).stat().st_size == 128 + one.values.nbytes
    for opened in (shop.open(one.digest), GenomeStore(shop.folder).open(one.digest)):
        assert opened.digest == one.digest
        assert opened.subspace == SPACE
        assert opened.values.dtype == dtype
        assert not opened.values.flags.writeable
        np.testing.assert_array_equal(opened.values, one.values)


def test_opening_reads_through_a_map_and_not_into_memory(shop):
    one = genome(size=4_000_000)
    shop.add(one)
    opened = GenomeStore(shop.folder).open(one.digest)
    with open("/proc/self/maps") as maps:
        assert any(f"{one.digest}.genome" in line for line in maps)
    shop.release(one.digest)
    np.testing.assert_array_equal(opened.values, one.values)  # a file that is gone stays readable while it is open


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_was_only_verified_takes_no_memory(shop):
    digests = []
    for seed in range(3):
        genome = Genome("a" * 32, np.full(1 << 22, seed, np.float32))
        shop.add(genome)
        digests.append(genome.digest)
    del genome
    fresh = GenomeStore(shop.folder)
    before = resident_bytes()
    opened = [fresh.open(digest) for digest in digests]
    assert resident_bytes() - before < 4 << 20  # of 48 MiB
    assert [float(genome.values.sum()) for genome in opened] == [0.0, float(1 << 22), float(2 << 22)]


def test_a_genome_is_verified_once_and_again_when_its_file_has_changed(shop, monkeypatch):
    one = genome()
    shop.add(one)
    again, digests = GenomeStore(shop.folder), []
    digest_of = Genome.digest.func
    monkeypatch.setattr(Genome.digest, "func", lambda genome: digests.append(genome) or digest_of(genome))
    assert [again.open(one.digest).digest for _ in range(3)] == [one.digest] * 3
    assert len(digests) == 1
    content = bytearray(shop.path(one.digest).read_bytes())
    content[200] ^= 1
    shop.path(one.digest).write_bytes(content)
    with pytest.raises(CheckpointError, match="its content has the name"):
        again.open(one.digest)


# ── references ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_archives_share_one_file_and_the_last_release_deletes_it(shop):
    one = genome()
    shop.add(one)
    shop.add(genome())
    shop.retain(one.digest)
    assert (shop.references(one.digest), files(shop)) == (3, [f"{one.digest}.genome"])
    for left in (2, 1):
        shop.release(one.digest)
        assert shop.references(one.digest) == left
        assert shop.open(one.digest).digest == one.digest
    shop.release(one.digest)
    assert files(shop) == []
    assert one.digest not in shop


def test_what_is_not_there_cannot_be_held_and_what_nobody_holds_cannot_be_released(shop):
    one = genome()
    with pytest.raises(CheckpointError, match="cannot be held: there is no such file"):
        shop.retain(one.digest)
    with pytest.raises(CheckpointError, match="is held by nobody and cannot be released"):
        shop.release(one.digest)
    shop.add(one)
    later = GenomeStore(shop.folder)
    with pytest.raises(CheckpointError, match="is held by nobody"):
        later.release(one.digest)
    assert one.digest in later


def test_a_sweep_keeps_what_is_alive_with_its_count_and_deletes_strays_and_leftovers(shop):
    kept, stray = genome(0), genome(1)
    shop.add(kept)
    shop.add(stray)
    (shop.folder / f".{stray.digest}.genome.0123456789abcdef.partial").write_bytes(b"half")
    (shop.folder / "notes.txt").write_text("mine")
    later = GenomeStore(shop.folder)
    assert later.sweep([kept.digest, kept.digest, genome(2).digest]) == [stray.digest]
    assert files(later) == sorted([f"{kept.digest}.genome", "notes.txt"])
    assert later.references(kept.digest) == 2
    assert later.references(genome(2).digest) == 0
    assert list(later) == [kept.digest]


def test_a_sweep_of_a_folder_that_does_not_exist_does_nothing(shop):
    assert shop.sweep() == []
    assert (list(shop), len(shop), shop.folder.exists()) == ([], 0, False)


def test_a_damaged_file_of_an_earlier_process_is_replaced_when_its_genome_is_added(shop):
    one = genome()
    shop.folder.mkdir()
    shop.path(one.digest).write_bytes(b"rubbish")
    shop.add(one)
    assert GenomeStore(shop.folder).open(one.digest).digest == one.digest


def test_a_file_that_somebody_deleted_is_written_again_when_its_genome_is_added(shop):
    one = genome()
    shop.add(one)
    shop.path(one.digest).unlink()
    shop.add(one)
    assert shop.open(one.digest).digest == one.digest


# ── hostile files ────────────────────────────────────────────────────────────────────────────────────────────────────


def header(*, magic=b"mnrgnm1", dtype=b"float32", count=1000, subspace=b"5" * 32):
    return struct.pack("<8s8sQ104s", magic, dtype, count, subspace)


BODY = np.ones(1000, np.float32).tobytes()
HOSTILE = {
    "empty": (b"", "0 bytes are fewer than the header's 128"),
    "cut in its header": (header()[:127], "127 bytes are fewer"),
    "another magic": (header(magic=b"PK") + BODY, "it begins with b'PK"),
    "another dtype": (header(dtype=b"object") + BODY, "its dtype is b'object"),
    "cut in its values": (header() + BODY[:-1], "its header promises 1000 values of float32, it holds 3999 bytes"),
    "too long": (header() + BODY + b"\0", "it holds 4001 bytes"),
    "enormous": (header(count=2**64 - 1) + BODY, "promises 18446744073709551615 values of float32"),
    "wrapping": (header(count=2**62 + 1000) + BODY, "promises 4611686018427388904 values"),
    "no values": (header(count=0) + BODY, "promises 0 values"),
    "no text": (header(subspace=b"\xff\xfe") + BODY, "its subspace's name is no text"),
    "altered": (header() + BODY[:-1] + b"\1", "its content has the name "),
    "of another subspace": (header(subspace=b"6" * 32) + BODY, "its content has the name "),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_naming_the_file_and_what_to_do(shop, kind):
    content, words = HOSTILE[kind]
    name = Genome(SPACE, np.ones(1000, np.float32)).digest
    shop.folder.mkdir()
    shop.path(name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        shop.open(name)
    assert str(caught.value).startswith(f"{shop.path(name)} is damaged: ")
    assert words in str(caught.value)
    assert "delete it: a resumed run breeds the genome again" in str(caught.value)


def test_the_file_of_the_hostile_cases_is_good_before_it_is_changed(shop):
    good = Genome(SPACE, np.ones(1000, np.float32))
    shop.add(good)
    assert shop.path(good.digest).read_bytes() == header() + BODY


def test_a_missing_file_a_folder_and_a_pipe_are_refused(shop):
    shop.folder.mkdir()
    names = [genome(seed).digest for seed in range(3)]
    shop.path(names[1]).mkdir()
    os.mkfifo(shop.path(names[2]))
    for name in names:
        with pytest.raises(CheckpointError, match=f"{name}.genome is not there, or is no file"):
            shop.open(name)


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_refused(shop):
    one = genome()
    shop.add(one)
    shop.path(one.digest).chmod(0)
    with pytest.raises(CheckpointError, match=r"cannot read .*: Permission denied"):
        GenomeStore(shop.folder).open(one.digest)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 31, "A" * 32, "a" * 33])
def test_a_name_that_is_none_never_becomes_a_path(shop, name):
    assert name not in shop
    for act in (shop.path, shop.open, shop.retain):
        with pytest.raises(CheckpointError, match="names no genome; names have 32 hexadecimal digits"):
            act(name)


def test_a_genome_that_no_header_can_describe_is_refused(shop):
    with pytest.raises(CheckpointError, match="a genome of float16 on a little-endian machine cannot be stored"):
        shop.add(genome(dtype=np.float16))
    with pytest.raises(CheckpointError, match="name of 105 bytes does not fit the header; 104 are the most"):
        shop.add(Genome("s" * 105, np.ones(1, np.float32)))
    assert files(shop) == []


# ── the disk ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_disk_is_told_with_its_remedy_and_leaves_nothing_behind(shop):
    one = genome(size=10_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"40128 bytes cannot be written: File too large; raise the limit"):
            shop.add(one)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(shop) == []
    assert shop.references(one.digest) == 0
    shop.add(one)
    assert shop.open(one.digest).digest == one.digest


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "genomes").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot create the folder .*genomes: File exists; choose another one"):
        GenomeStore(tmp_path / "genomes").add(genome())
    with pytest.raises(StorageError, match=r"cannot read the folder .*genomes: Not a directory; move what lies there"):
        GenomeStore(tmp_path / "genomes").sweep()


def test_a_file_that_cannot_be_deleted_is_told(shop):
    one = genome()
    shop.add(one)
    shop.path(one.digest).unlink()
    shop.path(one.digest).mkdir()
    with pytest.raises(StorageError, match=r"cannot delete .*; mend the folder's rights, then go on with --resume"):
        shop.release(one.digest)


ADDING = """
import sys
import numpy as np
from minerua.values import Genome
from minerua.weights import GenomeStore

store = GenomeStore(sys.argv[1])
for seed in range(10**6):
    store.add(Genome("5" * 32, np.random.default_rng(seed).random(300_000, np.float32)))
    print(seed, flush=True)
"""


def test_a_process_killed_while_it_adds_leaves_whole_genomes_and_a_leftover_that_the_sweep_removes(shop):
    for kill in range(4):
        process = subprocess.Popen([sys.executable, "-c", ADDING, str(shop.folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * kill)
        process.kill()
        process.communicate()
    later = GenomeStore(shop.folder)
    names = list(later)
    assert names
    assert all(later.open(name).digest == name for name in names)
    assert later.sweep(names[:1]) == names[1:]
    assert files(later) == [f"{names[0]}.genome"]
