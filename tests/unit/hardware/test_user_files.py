"""Files of users: built on a known chip or whole; each mistake is told with file, key, value and limit."""

import pytest

from trnsim.errors import InputError
from trnsim.hardware import load_chip, load_system


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_what_if_sbuf_doubled(write):
    path = write('name = "big"\nbase = "Trainium2"\n[core.sbuf]\nbytes_per_partition = "448 KiB"\n')
    big, trn2 = load_chip(path), load_chip("trn2")
    assert big.name == big.title == "big"
    assert big.core.sbuf.bytes_per_partition == 2 * trn2.core.sbuf.bytes_per_partition
    assert big.core.sbuf.usable_bytes_per_partition == 448 * 1024 - 16392
    assert big.core.engines == trn2.core.engines
    assert big.hbm == trn2.hbm
    assert big.aliases == ()
    fact = big.facts["core.sbuf.bytes_per_partition"]
    assert (fact.value, fact.confidence, fact.source) == ("448 KiB", "what-if", str(path))
    assert load_chip(str(path)) == big


def test_a_clock_changes_what_the_array_does(write):
    path = write('base = "trn2"\n[core.engines.tensor]\nclock = { value = "4.8 GHz", source = "idea" }\n')
    assert load_chip(path).name == "mine"
    assert load_chip(path).matmul_flops("bfloat16") == 2 * load_chip("trn2").matmul_flops("bfloat16")
    assert load_chip(path).facts["core.engines.tensor.clock"].source == "idea"


def test_another_core(write):
    chip = load_chip(write('base = "trn2"\n[core]\nbase = "neuroncore_v4"\n[core.psum]\nbanks = 16\n'))
    assert chip.nc_version == 4
    assert chip.core.psum.banks == 16
    assert chip.core.sbuf == load_chip("trn3").core.sbuf


def test_bases_may_be_files_beside(write):
    write('base = "trn2"\n[hbm]\ncapacity = "192 GiB"\n', "one.toml")
    two = write('base = "one.toml"\n[hbm]\nbandwidth = "6 TB/s"\n', "two.toml")
    assert (load_chip(two).hbm.capacity_bytes, load_chip(two).hbm.bytes_per_second) == (192 * 2**30, 6 * 10**12)
    system = write('base = "trn2.48xlarge"\nchip = "two.toml"\n', "system.toml")
    assert load_system(system).hbm_bytes == 16 * 192 * 2**30


def test_a_changed_file_is_read_again(write):
    path = write('base = "trn2"\ncore_count = 8\n')
    assert load_chip(path).core_count == 8
    write('base = "trn2"\ncore_count = 16\n')
    assert load_chip(path).core_count == 16


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('base = "trn2"\n[hbm]\ncapacty = "1 GiB"\n', ["hbm.capacty", "unknown key", "did you mean 'capacity'?"]),
        ('base = "trn2"\nfoo = 1\n', ["foo: unknown key"]),
        ('base = "trn2"\n[hbm]\ncapacity = "96 GHz"\n', ["hbm.capacity", "'96 GHz'", "unit 'GHz'", "GiB"]),
        ('base = "trn2"\n[hbm]\ncapacity = 96\n', ["hbm.capacity", "must be text with a unit of size", "value 96"]),
        ('base = "trn2"\n[core.engines.tensor]\nclock = "2.4 THz"\n', ["tensor.clock", "2.4 THz", "1e+06 to 2e+10 Hz"]),
        ('base = "trn2"\n[core.psum]\nbanks = 0\n', ["core.psum.banks", "out of range", "value 0", "1 to 1024"]),
        ('base = "trn2"\n[core.psum]\nbanks = 8.5\n', ["core.psum.banks", "whole number", "8.5"]),
        ('base = "trn2"\n[core.psum]\nbanks = true\n', ["core.psum.banks", "whole number"]),
        ('base = "trn2"\n[core.sbuf]\nreserved_bytes_per_partition = "1 MiB"\n', ["leaves nothing", "limit 229376"]),
        ('base = "trn2"\n[logical_core]\ndefault = 1\nsettings = [2]\n', ["logical_core.default", "(2,)"]),
        ('base = "trn2"\ncore_count = 7\n', ["logical_core.settings", "core_count 7"]),
        ('base = "trn2"\n[scale_up]\ndirection = "up"\n', ["scale_up.direction", "one way"]),
        ('base = "trn2"\nhbm = 3\n', ["hbm: must be a table"]),
        ('base = "trn2"\nname = 3\n', ["name: must be a string"]),
        ('base = "trn2"\naliases = "x"\n', ["aliases: must be a list"]),
        ('base = "trm2"\n', ["unknown chip 'trm2'", "did you mean 'trn2'?"]),
        ('base = "mine.toml"\n', ["base", "in a circle"]),
        ('base = "trn2"\n[core]\nversion = "v9"\n', ["core.version", "v9", "v2, v3, v4"]),
        ('base = "trn2"\n[hbm]\nstacks = { vale = 4 }\n', ["hbm.stacks.vale", "did you mean 'value'?"]),
        ('base = "trn2"\n[hbm]\nstacks = { source = "x" }\n', ["hbm.stacks.value: missing"]),
        ('base = "trn2"\n[hbm]\nstacks = { value = 4, date = "soon" }\n', ["hbm.stacks.date", "soon"]),
        ('base = "trn2"\n[hbm]\nstacks = { value = 4, confidence = "sure" }\n', ["confidence", "sure", "published"]),
        ('base = "trn2"\n[[prices]]\ntype = "spot"\n', ["prices[0].usd_per_hour: missing"]),
        ('base = "trn2"\n[[prices]]\ntype = "spot"\nusd_per_hour = -1\n', ["prices[0].usd_per_hour", "value -1"]),
        ('name = "new"\n', ["title: missing", 'base = "NAME"']),
        ("base = \n", ["not a TOML file"]),
    ],
)
def test_errors_name_file_key_and_limit(write, text, parts):
    path = write(text)
    with pytest.raises(InputError) as caught:
        load_chip(path)
    message = str(caught.value)
    assert str(path) in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('base = "trn2.48xlarge"\n[topology]\ndomain = 32\n', ["topology.domain", "value 32", "limit 16"]),
        ('base = "trn2.48xlarge"\n[topology]\nshape = [4, 5]\n', ["topology.shape", "(4, 5)", "limit 16"]),
        ('base = "trn2.48xlarge"\nchip = "none.toml"\n', ["no such chip file"]),
    ],
)
def test_errors_of_systems(write, text, parts):
    path = write(text)
    with pytest.raises(InputError) as caught:
        load_system(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["trn9", "", "no/such", "missing.toml", "../chips/trn2"])
def test_unknown_chips(name):
    with pytest.raises(InputError, match=r"unknown chip|no such chip file"):
        load_chip(name)


def test_unknown_names_list_the_known():
    with pytest.raises(InputError, match=r"did you mean 'trn3'.*inf1.*trn2"):
        load_chip("tnr3")
    with pytest.raises(InputError, match=r"did you mean 'trn2.48xlarge'"):
        load_system("trn2.48xlrge")
