"""Every kernel keeps the contract of kernels/README.md: its text is checked, and compiled."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

KERNELS = sorted((REPO / "kernels").glob("*/*.c"))
HEADERS = sorted((REPO / "kernels" / "include").glob("*.h"))
IDS = [path.stem for path in KERNELS]
WARNINGS = ("-O2", "-Wall", "-Wextra", "-Werror")

_NAME = re.compile(r"es_[a-z0-9_]+?_((?:s8|u8|s16|s32|s64|f32|b8)+)(?:_[a-z0-9_]+?)?__([a-z0-9]+)")
_DEFINITION = re.compile(r"^(?!static)(?:[a-z_0-9]+) \*?(\w+)\(([^)]*)\) \{", re.MULTILINE)
_ANY_DEFINITION = re.compile(
    r"^(?:static )?(?:inline )?[a-z_0-9]+ \*?(\w+)\([^)]*\) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL
)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_STRUCT = re.compile(r"typedef struct(?: \w+)? \{([^}]*)\} (\w+);")


def code_of(path: Path) -> str:
    """The text without comments."""
    return _COMMENT.sub("", path.read_text("utf-8"))


def contract_of(path: Path) -> str:
    """The comment at the head of a file."""
    match = re.match(r"/\*(.*?)\*/\n#include", path.read_text("utf-8"), re.DOTALL)
    assert match, "must begin with its contract, then include"
    return match[1]


def definition_of(path: Path) -> tuple[str, list[str]]:
    """Name and parameters of the one function that others may call."""
    found = _DEFINITION.findall(code_of(path))
    assert len(found) == 1, f"must define one function that is not static, has {found}"
    name, parameters = found[0]
    return name, [" ".join(p.split()) for p in parameters.split(",")]


@pytest.mark.parametrize("path", KERNELS, ids=IDS)
def test_a_file_holds_the_function_it_is_named_for(path):
    name, _ = definition_of(path)
    assert name == path.stem
    match = _NAME.fullmatch(name)
    assert match, "must be es_<op>_<dtype>[_<shape>]__<isa>"
    assert match[2] == path.parent.name, "must lie in the folder of its instruction set"


@pytest.mark.parametrize("path", KERNELS, ids=IDS)
def test_a_contract_describes_each_pointer_and_what_the_kernel_is_exact_to(path):
    contract = contract_of(path)
    for parameter in definition_of(path)[1]:
        kind, _, name = parameter.rpartition(" ")
        if not name.startswith("*") or re.match(r"const es_\w+_shape$", kind.strip()):
            continue
        name = name.lstrip("*")
        line = re.search(rf"^ \* +{name} +\[([a-z, ]+)\] +\S", contract, re.MULTILINE)
        assert line, f"has no line for {name}"
        writes = line[1] not in ("in",)
        assert writes != kind.startswith("const "), f"{name} is [{line[1]}], but {kind}"
    moves_bytes = "_b8" in path.stem
    assert moves_bytes or re.search(r"^ \* Exact: +\S", contract, re.MULTILINE), (
        "must say what it is exact to"
    )
    assert re.match(r" \S[^\n]+", contract), "must say first what it computes"


@pytest.mark.parametrize("path", KERNELS, ids=IDS)
def test_a_kernel_is_declared_once_in_a_header_it_includes(path):
    name, parameters = definition_of(path)
    declared = {h: " ".join(code_of(h).split()) for h in HEADERS}
    prototype = re.compile(rf"\b\w+ \*?{name}\(([^)]*)\);")
    homes = {h.name: prototype.findall(text) for h, text in declared.items()}
    homes = {header: found for header, found in homes.items() if found}
    assert len(homes) == 1, f"must be declared in one header, is in {sorted(homes)}"
    ((header, found),) = homes.items()
    assert found == [", ".join(parameters)]
    assert f'#include "{header}"' in path.read_text("utf-8")


@pytest.mark.parametrize("path", KERNELS, ids=IDS)
def test_a_kernel_takes_eight_arguments_at_most(path):
    assert len(definition_of(path)[1]) <= 8


@pytest.mark.parametrize("path", [*KERNELS, *HEADERS], ids=lambda path: path.name)
def test_code_needs_no_library_no_state_and_no_recursion(path):
    code = code_of(path)
    for line in code.splitlines():
        assert not re.match(r"#\s*include <(?!stddef\.h|stdint\.h|arm_acle\.h)", line), line
        static = re.match(r"\s*static\s+(?!inline\b|const\b)", line)
        assert not static or line.rstrip().endswith(("{", ",")), f"keeps state: {line}"
        assert not re.match(
            r"(?!static|const|typedef|extern|#|\}|ES_)\w[\w ]* \**\w+( =.*)?;", line
        ), f"has a global: {line}"
    assert not re.search(
        r"\b(malloc|calloc|realloc|free|alloca|memcpy|memset|memmove|goto)\b", code
    )
    for name, body in _ANY_DEFINITION.findall(code):
        assert not re.search(rf"\b{name}\(", body), f"{name} calls itself"


@pytest.mark.parametrize("path", KERNELS, ids=IDS)
def test_a_body_has_no_conditional_text_and_float_only_where_the_name_says_so(path):
    code = code_of(path)
    for name, body in _ANY_DEFINITION.findall(code):
        assert not re.search(r"^\s*#", body, re.MULTILINE), name
    if "f32" not in path.stem:
        assert not re.search(r"\b(float|double)\b|\d\.\d", code)
        assert "es_float.h" not in code


@pytest.mark.parametrize("path", [*KERNELS, *HEADERS], ids=lambda path: path.name)
def test_lines_fit_a_page(path):
    text = path.read_text("utf-8")
    assert max(map(len, text.splitlines())) <= 100
    assert "\t" not in text
    assert text.endswith("\n")


@pytest.mark.parametrize("path", HEADERS, ids=lambda path: path.name)
def test_a_shape_is_a_struct_of_int32_alone(path):
    for body, name in _STRUCT.findall(code_of(path)):
        if name.endswith("_shape"):
            kinds = {field.split()[0] for field in body.split(";") if field.strip()}
            assert kinds == {"int32_t"}, name


@pytest.mark.slow
@pytest.mark.parametrize("language", [("cc", "-std=c11"), ("c++", "-x", "c++")], ids=["c", "c++"])
def test_every_kernel_and_header_compiles_without_a_warning(language, tmp_path):
    include = f"-I{REPO / 'kernels' / 'include'}"
    alone = []
    for header in HEADERS:
        source = tmp_path / f"{header.stem}_alone.c"
        source.write_text(f'#include "{header.name}"\n#include "{header.name}"\n', "utf-8")
        alone.append(source)
    command = [*language, *WARNINGS, "-Wno-unused-function", "-c", include, *KERNELS, *alone]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.o"))) == len(KERNELS) + len(alone)


@pytest.mark.slow
def test_the_other_tests_meet_no_undefined_behaviour():
    """All tests of kernels again, in a process whose kernels stop at anything undefined.

    Mutants stay away, theirs may well be undefined. Tests that merely fail do so elsewhere too.
    """
    program = (
        "import sys, pytest\n"
        "import tests.kernels.host as host\n"
        "host.FLAGS = (*host.FLAGS, '-fsanitize=undefined', '-fsanitize-undefined-trap-on-error')\n"
        "options = ['-q', '-p', 'no:cacheprovider', '-k', 'not mutant', '-m', 'not slow']\n"
        "options += ['--ignore=tests/kernels/test_contracts.py', 'tests/kernels']\n"
        "sys.exit(pytest.main(options))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode >= 0, f"ended by signal {-done.returncode}: {done.stderr[:4000]}"
    assert " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-4000:]
