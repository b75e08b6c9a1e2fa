"""The devices that travel with the package, and everything that can be wrong in a target file."""

from __future__ import annotations

import csv
import os
import re
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest

from edgeshrink.budget import Budget
from edgeshrink.errors import ConfigError
from edgeshrink.target import describe, list_targets, load_target, read_target, source_of

PHONES = {"pixel3", "pixel4", "pixel6"}
APPLICATION = {"rpi4", "rpi5", "rpi3b+", "rpi-zero-2w", "android-arm64"} | PHONES
MICROCONTROLLERS = {
    "nucleo-l4r5zi", "nucleo-u575zi", "nucleo-h7a3zi", "disco-f746ng", "nucleo-g0b1re",
    "nrf52840dk", "nrf5340dk", "rp2040", "rp2350", "ek-ra6m4", "esp32-c3",
}  # fmt: skip
REPO = Path(__file__).resolve().parents[2]
FILES = sorted((REPO / "targets").glob("*.toml"))
BY_NAME = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])

MINE = """\
name = "mine"
title = "My board"
kind = "microcontroller"
soc = "X1"

[cpu]
core = "cortex-m4f"
isa = ["dsp"]
clock_mhz = 64
cores = 1

[memory]
flash = "512 KiB"
ram = "128 KiB"
firmware_flash = "16 KiB"
firmware_ram = "8 KiB"

[[memory.caches]]
name = "ICACHE"
size = "2 KiB"

[ops]
dtypes = ["int8"]

[[runtimes]]
name = "c"
version = "0.1"

[budget]
latency = "20 ms"

[sources]
"cpu" = "datasheet: X1, page 1"
"memory" = "datasheet: X1, page 2"
"memory.ram" = "recalled: X1"
"budget" = "chosen: by me"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str = MINE, name: str = "mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


def changed(*pairs: tuple[str, str]) -> str:
    text = MINE
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


# ---- the targets of the package


def test_all_promised_targets_are_there_with_their_kind(here):
    kinds = {target.name: target.kind for target in list_targets()}
    assert {name for name, kind in kinds.items() if kind == "application-processor"} >= APPLICATION
    assert {name for name, kind in kinds.items() if kind == "microcontroller"} >= MICROCONTROLLERS
    assert kinds["host"] == "host"


@BY_NAME
def test_every_shipped_target_loads_and_leaves_room_for_a_model(path):
    target = read_target(path)
    assert target.name == path.stem
    assert target.cpu.n_cores >= 1
    assert target.memory.ram_bytes > target.memory.firmware_ram_bytes
    if target.kind == "microcontroller":
        assert target.int8_only()
        assert target.budget.flash_bytes
        assert target.budget.ram_bytes
    assert target.budget.accuracy_drop is not None


@BY_NAME
def test_every_shipped_fact_says_where_it_comes_from(path):
    target = read_target(path)
    for key, _, source in describe(target):
        group = key.partition(".")[0]
        if group in ("cpu", "memory", "ops", "runtimes", "budget", "power") and path.stem != "host":
            assert source, f"{path.name}: {key}"
        if group == "budget":
            assert source.startswith("chosen:")


@BY_NAME
def test_budgets_of_shipped_targets_fit_their_memories(path):
    target = read_target(path)
    memory = target.memory
    if target.budget.ram_bytes is not None:
        assert target.budget.ram_bytes <= memory.ram_bytes - memory.firmware_ram_bytes
    if target.budget.flash_bytes is not None:
        assert target.budget.flash_bytes <= memory.flash_bytes - memory.firmware_flash_bytes


@BY_NAME
def test_versions_of_engines_are_those_of_the_package(path, repo):
    project = tomllib.loads((repo / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [r for extra in project["optional-dependencies"].values() for r in extra]
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", "\n".join(wanted), re.MULTILINE))
    packages = {"litert": "ai-edge-litert", "tflm": "tflite-micro"}
    for runtime in read_target(path).runtimes:
        if runtime.name != "c":
            assert runtime.version == pins[packages.get(runtime.name, runtime.name)]


def test_the_host_has_this_machines_cores_and_memory(here):
    host = load_target("host")
    assert host.cpu.n_cores == os.cpu_count()
    assert host.cpu.clock_mhz is None
    meminfo = Path("/proc/meminfo").read_text()
    total_kib = int(re.search(r"MemTotal:\s+(\d+) kB", meminfo)[1])
    assert host.memory.ram_bytes == total_kib * 1024


@pytest.mark.shared
def test_cores_and_clocks_are_those_of_the_reference_table(here, shared_dir):
    other_names = {
        "nucleo-h7a3zi": "nucleo-h7a3zi-q", "nucleo-u575zi": "nucleo-u575zi-q",
        "nrf52840dk": "nrf52840", "nrf5340dk": "nrf5340-dk", "rp2040": "rp2040 pico",
        "rp2350": "rp2350 pico2",
    }  # fmt: skip
    with (shared_dir / "anchors" / "devices.csv").open(encoding="utf-8") as file:
        rows = {row["profile"]: row for row in csv.DictReader(file)}
    for name in (APPLICATION | MICROCONTROLLERS) - {"android-arm64", "pixel6"}:
        target, row = load_target(name), rows[other_names.get(name, name)]
        assert target.cpu.clock_mhz == float(row["clock_mhz"]), name
        core = row["core"].split()[0].lower()  # "Cortex-A76 1x2.84+3x2.42 + ..."
        assert target.cpu.core == core, name
        if name not in PHONES:  # whose small cores are left out
            assert target.cpu.n_cores == int(row["n_cores"]), name


# ---- where targets are looked for


def test_a_target_of_ones_own_is_found_by_path_anywhere(here):
    path = write(here / "mein Gerät")
    assert load_target(str(path)).title == "My board"
    assert load_target("mein Gerät/mine.toml").title == "My board"


def test_a_target_of_ones_own_is_found_by_name_in_the_targets_folder(here):
    write(here / "targets")
    assert load_target("mine").path == Path("targets/mine.toml")
    assert "mine" in {target.name for target in list_targets()}


def test_the_own_targets_folder_goes_before_the_packages(here):
    text = changed(('"mine"', '"rpi4"'))
    write(here / "targets", text, "rpi4")
    assert load_target("rpi4").title == "My board"
    assert [t.title for t in list_targets() if t.name == "rpi4"] == ["My board"]


def test_without_a_folder_of_ones_own_the_packages_targets_remain(here):
    assert load_target("rpi4").title == "Raspberry Pi 4 Model B"


@pytest.mark.parametrize(("name", "near"), [("rpi44", "rpi4"), ("nucleo-l4r5", "nucleo-l4r5zi")])
def test_an_unknown_target_gets_the_nearest_one(here, name, near):
    with pytest.raises(ConfigError, match=f"target '{name}': is not known; did you mean '{near}'"):
        load_target(name)


def test_an_unknown_target_like_no_other_gets_the_list(here):
    with pytest.raises(
        ConfigError, match=r"known: android-arm64, .* \(or give the path of a .toml"
    ):
        load_target("%%%")


def test_a_path_that_leads_nowhere_is_named(here):
    with pytest.raises(ConfigError, match=r"^gone/mine\.toml: no such file"):
        load_target("gone/mine.toml")


# ---- what can be wrong in a file


def test_the_file_that_the_faults_below_are_put_into_is_right(here):
    target = load_target(str(write(here)))
    assert target.memory.caches[0].size_bytes == 2048
    assert target.budget == Budget(
        latency_ms=20.0, ram_bytes=120 * 1024, flash_bytes=496 * 1024
    )  # what the memories leave


@pytest.mark.parametrize(
    ("old", "new", "key", "remedy"),
    [
        # unknown keys
        ("clock_mhz = 64", "clokc_mhz = 64", "cpu.clokc_mhz", "did you mean 'clock_mhz'?"),
        ("[cpu]", "[cup]", "cup", "did you mean 'cpu'?"),
        ("[budget]", "[budgets]", "budgets", "did you mean 'budget'?"),
        ("soc =", "sco =", "sco", "did you mean 'soc'?"),
        ('latency = "20 ms"', "latency_ms = 20", "budget.latency_ms", "did you mean 'latency'?"),
        ('size = "2 KiB"', 'sizes = "2 KiB"', "memory.caches[0].sizes", "did you mean 'size'?"),
        ('version = "0.1"', 'versoin = "0.1"', "runtimes[0].versoin", "did you mean 'version'?"),
        # wrong types
        ("clock_mhz = 64", 'clock_mhz = "64"', "cpu.clock_mhz", "a number in [1, 10000]"),
        ("cores = 1", "cores = 1.5", "cpu.cores", "a whole number in [1, 1024]"),
        ('isa = ["dsp"]', 'isa = "dsp"', "cpu.isa", "a list of strings"),
        ('soc = "X1"', "soc = 1", "soc", "a string"),
        ('ram = "128 KiB"', "ram = 131072", "memory.ram", "a string with a unit"),
        ("[cpu]\n", "[[cpu]]\n", "cpu", "a table [cpu]"),
        # units
        ('ram = "128 KiB"', 'ram = "128 K"', "memory.ram", "one of B, kB"),
        ('ram = "128 KiB"', 'ram = "128"', "memory.ram", "one of B, kB"),
        ('latency = "20 ms"', 'latency = "20 sec"', "budget.latency", "one of us, ms, s"),
        # ranges
        ("clock_mhz = 64", "clock_mhz = 64000000", "cpu.clock_mhz", "in [1, 10000]"),
        ("clock_mhz = 64", "clock_mhz = 0", "cpu.clock_mhz", "in [1, 10000]"),
        ("clock_mhz = 64", "clock_mhz = nan", "cpu.clock_mhz", "in [1, 10000]"),
        ("cores = 1", "cores = 0", "cpu.cores", "in [1, 1024]"),
        ('size = "2 KiB"', 'size = "0 B"', "memory.caches[0].size", "between 1 B"),
        ('latency = "20 ms"', 'latency = "0 ms"', "budget.latency", "between 1 us"),
        ('latency = "20 ms"', 'ram = "121 KiB"', "budget.ram", "memory leaves 122880 bytes"),
        ('latency = "20 ms"', 'flash = "497 KiB"', "budget.flash", "memory leaves 507904 bytes"),
        ('firmware_ram = "8 KiB"', 'firmware_ram = "128 KiB"', "memory.firmware_ram", "less than"),
        ('firmware_flash = "16 KiB"', 'firmware_flash = "1 MiB"', "memory.firmware_flash", "less"),
        ('firmware_ram = "8 KiB"', 'tcm = "129 KiB"', "memory.tcm", "part of ram"),
        # words
        ('"microcontroller"', '"micro-controller"', "kind", "did you mean 'microcontroller'?"),
        ('isa = ["dsp"]', 'isa = ["dps"]', "cpu.isa", "did you mean 'dsp'?"),
        ('dtypes = ["int8"]', 'dtypes = ["int9"]', "ops.dtypes", "did you mean 'int8'?"),
        ('dtypes = ["int8"]', "dtypes = []", "ops.dtypes", "write 1 or more of int8"),
        ('name = "c"', 'name = "litter"', "runtimes[0].name", "did you mean 'litert'?"),
        ('name = "mine"', 'name = "other"', "name", "('mine')"),
        ('title = "My board"', 'title = ""', "title", "write a string"),
        ('version = "0.1"', 'version = "1"\n[[runtimes]]\nname = "c"\nversion = "2"',
         "runtimes[1].name", "each one once"),
        # what is missing
        ("clock_mhz = 64\n", "", "cpu.clock_mhz", "add it: a number in"),
        ('core = "cortex-m4f"\n', "", "cpu.core", "add it: a string"),
        ('ram = "128 KiB"\n', "", "memory.ram", "add it: a string with a unit"),
        ('flash = "512 KiB"\nram', "ram", "memory.flash", "add its size"),
        ('[[runtimes]]\nname = "c"\nversion = "0.1"\n', "", "runtimes", "add [[runtimes]]"),
        ('[ops]\ndtypes = ["int8"]\n', "", "ops", "a table [ops]"),
        # sources
        ('"cpu" = "datasheet: X1, page 1"\n', "", "sources.cpu.clock_mhz", '"cpu.clock_mhz" = '),
        ('"budget" = "chosen: by me"\n', "", "sources.budget.latency", '"budget.latency" = '),
        ('"recalled: X1"', '"I think"', "sources.memory.ram", "datasheet:, sourced:, recalled:"),
        ('"recalled: X1"', '"recalled: "', "sources.memory.ram", "names the source"),
        ('"recalled: X1"', "1", "sources.memory.ram", "it must be a string"),
        ('"memory.ram"', '"memory.rma"', "sources.memory.rma", "did you mean 'memory.ram'?"),
    ],
)  # fmt: skip
def test_bad_target_names_file_key_and_fix(here, old, new, key, remedy):
    path = write(here / "Geräte 1", changed((old, new)))
    with pytest.raises(ConfigError) as caught:
        load_target(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: {key}: ")
    assert remedy in message


def test_a_name_that_no_shell_likes_is_refused(here):
    path = write(here, changed(('"mine"', '"My Board"')), "My Board")
    with pytest.raises(ConfigError, match=r"name: is 'My Board'; .* lower-case letters"):
        load_target(str(path))


def test_a_target_that_is_no_toml_is_named(here):
    with pytest.raises(ConfigError, match=r"mine\.toml: is not valid TOML .*line 1"):
        load_target(str(write(here, "name = mine")))


def test_a_broken_target_of_ones_own_is_named_when_all_are_listed(here):
    write(here / "targets", "broken")
    with pytest.raises(ConfigError, match=r"^targets/mine\.toml: "):
        list_targets()
    assert load_target("rpi4").name == "rpi4"  # the others can be used


# ---- sources


def test_a_fact_without_a_source_of_its_own_takes_its_groups(here):
    target = load_target(str(write(here)))
    assert source_of(target, "memory.ram") == "recalled: X1"
    assert source_of(target, "memory.caches.ICACHE.size") == "datasheet: X1, page 2"
    assert source_of(target, "title") == ""


def test_keys_of_sources_need_no_quotes(here):
    text = changed(('"memory.ram" =', "memory.ram ="), ('"memory" = "datasheet: X1, page 2"\n', ""))
    text += 'memory.flash = "datasheet: X1"\nmemory.firmware_flash = "chosen: me"\n'
    text += 'memory.firmware_ram = "chosen: me"\nmemory.caches = "datasheet: X2"\n'
    target = load_target(str(write(here, text)))
    assert source_of(target, "memory.ram") == "recalled: X1"
    assert source_of(target, "memory.caches.ICACHE.size") == "datasheet: X2"


def test_every_fact_of_a_file_is_described_in_its_order(here):
    keys = [key for key, _, _ in describe(load_target(str(write(here))))]
    assert keys == [
        "name", "title", "kind", "soc", "cpu.core", "cpu.isa", "cpu.clock_mhz", "cpu.cores",
        "memory.flash", "memory.ram", "memory.firmware_flash", "memory.firmware_ram",
        "memory.caches.ICACHE.size", "ops.dtypes", "runtimes.c.version", "budget.latency",
    ]  # fmt: skip


# ---- the field reference


def test_the_field_reference_is_up_to_date(repo):
    script = runpy.run_path(str(repo / ".ci" / "targets_readme.py"))
    assert (repo / "targets" / "README.md").read_text("utf-8") == script["readme"](), (
        "run `python .ci/targets_readme.py`"
    )


def test_the_field_reference_names_every_key_that_a_shipped_target_uses(repo):
    sections = re.split(r"^### ", (repo / "targets" / "README.md").read_text("utf-8"), flags=re.M)
    documented = {
        section.splitlines()[0].strip("`"): set(re.findall(r"^\| `(\w+)` \|", section, re.M))
        for section in sections[1:]
    }
    for path in FILES:
        facts = tomllib.loads(path.read_text("utf-8"))
        memory = facts.get("memory", {})
        used = {
            "Identity": {key for key, value in facts.items() if isinstance(value, str)},
            "[cpu]": facts["cpu"].keys(),
            "[memory]": memory.keys() - {"caches"},
            "[[memory.caches]]": {key for cache in memory.get("caches", []) for key in cache},
            "[ops]": facts["ops"].keys(),
            "[[runtimes]]": {key for runtime in facts["runtimes"] for key in runtime},
            "[budget]": facts["budget"].keys(),
            "[[power.supplies]]": {
                key for entry in facts.get("power", {}).get("supplies", []) for key in entry
            },
        }
        for section, keys in used.items():
            assert keys <= documented[section], path.name


def test_the_example_of_the_field_reference_is_a_good_target(repo, here):
    text = (repo / "targets" / "README.md").read_text("utf-8")
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1]
    target = load_target(str(write(here, example, "my-board")))
    assert target.memory.ram_bytes == 128 * 1024


def test_a_copy_of_a_shipped_target_works_from_any_folder(here, repo):
    (here / "targets").mkdir()
    shutil.copy(repo / "targets" / "rpi4.toml", here / "targets" / "rpi4.toml")
    assert load_target("rpi4").path == Path("targets/rpi4.toml")
