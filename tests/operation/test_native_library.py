# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The library built from C++: what is loaded is what was built, by whoever else the machine is shared with, however a
process ended before; and without one, the plain form runs and says so once."""

import ctypes
import json
import mmap
import multiprocessing
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from variants import COMPILER, some_each_time

from astroformer_hf import (
    attention_backend,
    build,
    hybrid_attention_cpu,
    native_library,
    neuron_astrocyte_attention,
    neuron_astrocyte_cpu,
)
from astroformer_hf.attention_backends import choose_backend
from astroformer_hf.feature_maps import HedgehogMap
from astroformer_hf.hybrid_attention import ExactPart, Synapses, hybrid_attention
from astroformer_hf.neuron_astrocyte_cpu_source import generate_source


pytestmark = pytest.mark.compiler

LIBRARIES = (neuron_astrocyte_cpu.LIBRARY, hybrid_attention_cpu.LIBRARY)

SOURCE = '#include <omp.h>\nextern "C" int answer() { return 41 + omp_get_thread_limit() / omp_get_thread_limit(); }\n'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache, not there yet; and temporary folders go beside it."""
    temporary = tmp_path / "temporary"
    temporary.mkdir(mode=0o700)
    monkeypatch.setenv("ASTROFORMER_CACHE", str(tmp_path / "own" / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    yield tmp_path / "own" / "cache"
    assert list(temporary.iterdir()) == []  # whatever a test does


def forget(library):
    """Has it built and loaded anew when it is next needed."""
    library.__dict__.pop("_library_or_obstacle", None)


def answer():
    return native_library.load_library("answer", SOURCE).answer()


def library_in(cache):
    (path,) = cache.glob("answer_*.so")
    return path


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


def no_compiler(monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# --------------------------------------------------------------------------------------------------------------------
# What is kept, and what of it is loaded
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_is_this_users_alone_whatever_the_umask(cache, umask, caplog):
    before = os.umask(umask)
    try:
        assert answer() == 42
    finally:
        os.umask(before)
    library = library_in(cache)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in cache.iterdir()}
    assert modes == {library.name: 0o700, library.with_suffix(".json").name: 0o600, "build.lock": 0o600}
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (cache, cache.parent))
    assert warnings_of(caplog) == []


def test_it_is_on_the_disk_before_it_has_its_name(cache, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    place = lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append(place(descriptor)), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append((str(a), str(b))), replace(a, b)))
    answer()
    for i, event in enumerate(events):
        if isinstance(event, tuple):
            assert event[0] in events[:i] and str(cache) in events[i:]
    assert {Path(b).suffix for event in events if isinstance(event, tuple) for b in event} == {".so", ".json"}


def test_a_warm_cache_needs_no_compiler(cache, monkeypatch, tmp_path, caplog):
    answer()
    time_built = library_in(cache).stat().st_mtime_ns
    no_compiler(monkeypatch, tmp_path)
    assert answer() == 42
    cache.chmod(0o500)  # as in an image that is read only
    assert answer() == 42
    cache.chmod(0o700)
    assert library_in(cache).stat().st_mtime_ns == time_built and warnings_of(caplog) == []


def planted(tmp_path):
    """A library that leaves a trace as soon as it is loaded."""
    source, library, trace = tmp_path / "planted.cpp", tmp_path / "planted.so", tmp_path / "trace"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) static void run() {{ fopen("{trace}", "w"); }}\n'
        'extern "C" int answer() { return 13; }\n'
    )
    subprocess.run([COMPILER, "-shared", "-fPIC", source, "-o", library], check=True)
    return library, trace


def replace_by(content):
    def change(path, other):
        path.write_bytes(content(path.read_bytes(), other))

    return change


def link_to_it(path, other):
    path.unlink()
    path.symlink_to(other)


def pipe_in_its_place(path, other):
    path.unlink()
    os.mkfifo(path, 0o700)


def change_record(change):
    def damage(path, other):
        record = path.with_suffix(".json")
        content = change(record.read_text())
        record.unlink() if content is None else record.write_text(content)

    return damage


def plant_both(path, other):
    """What somebody can do who may write in the folder but is not its owner."""
    content = other.read_bytes()
    path.write_bytes(content)
    record = {"size": len(content), "sha256": native_library.hashlib.sha256(content).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(record))
    os.chown(path, 65534, 65534)


DAMAGES = {
    "truncated": (replace_by(lambda content, other: content[: len(content) // 2]), "it is not what was built"),
    "empty": (replace_by(lambda content, other: b""), "it is not what was built"),
    "another byte": (replace_by(lambda content, other: content[:-1] + bytes([content[-1] ^ 1])), "not what was built"),
    "foreign": (replace_by(lambda content, other: other.read_bytes()), "it is not what was built"),
    "no library": (replace_by(lambda content, other: b"\x7fELF" + bytes(len(content) - 4)), "it is not what was built"),
    "huge": (lambda path, other: os.truncate(path, 2**40), "has 1,099,511,627,776 bytes"),
    "writable by all": (lambda path, other: path.chmod(0o777), r"others may write to .*mode 0777"),
    "writable by the group": (lambda path, other: path.chmod(0o775), r"others may write to .*mode 0775"),
    "symbolic link": (link_to_it, "symbolic link"),
    "pipe": (pipe_in_its_place, "is not a regular file"),
    "no record": (change_record(lambda text: None), "No such file"),
    "empty record": (change_record(lambda text: ""), "Expecting value"),
    "record of something else": (change_record(lambda text: "[1]"), "list indices"),
    "record that others may write": (
        lambda path, other: path.with_suffix(".json").chmod(0o666),
        r"others may write to .*\.json \(mode 0666\)",
    ),
    "another user's": (plant_both, "belongs to user 65534"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_what_was_built_is_built_again(cache, tmp_path, caplog, name):
    if name == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    damage, reason = DAMAGES[name]
    answer()
    other, trace = planted(tmp_path)
    damage(library_in(cache), other)
    assert answer() == 42 and not trace.exists()
    (warning,) = warnings_of(caplog)
    assert re.search(f"not loaded but built again: .*{reason}", warning), warning
    library = library_in(cache)
    assert stat.S_IMODE(library.lstat().st_mode) == 0o700 and library.lstat().st_uid == os.geteuid()
    assert answer() == 42 and len(warnings_of(caplog)) == 1


def test_a_running_process_outlives_its_file(cache):
    library = native_library.load_library("answer", SOURCE)
    os.truncate(library_in(cache), 0)
    assert library.answer() == 42


def test_two_libraries_are_two(cache):
    """Also where the loader could take the second for the first, by its path."""
    for number in range(3):
        source = f'extern "C" int answer() {{ return {number}; }}'
        assert native_library.load_library("answer", source).answer() == number


def make_unsafe(kind, cache):
    cache.mkdir(parents=True, exist_ok=True)
    if kind == "another user's parent":
        os.chown(cache.parent, 65534, 65534)
    else:
        folder, mode = {
            "folder of all": (cache, 0o777),
            "folder of all, sticky": (cache, 0o1777),
            "folder of the group": (cache, 0o770),
            "parent of all": (cache.parent, 0o777),
            "parent of the group": (cache.parent, 0o770),
        }[kind]
        folder.chmod(mode)


@pytest.mark.parametrize(
    "kind",
    [
        *("folder of all", "folder of all, sticky", "folder of the group"),
        *("parent of all", "parent of the group", "another user's parent"),
    ],
)
def test_a_cache_that_others_may_change_is_refused(cache, tmp_path, caplog, kind):
    if kind == "another user's parent" and os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    answer()
    make_unsafe(kind, cache)
    other, trace = planted(tmp_path)
    library = library_in(cache)
    library.write_bytes(other.read_bytes())
    assert answer() == 42 and not trace.exists()
    (warning,) = warnings_of(caplog)
    assert str(cache) in warning and "is refused" in warning and "ASTROFORMER_CACHE" in warning
    assert ("others may write to" in warning) or ("belongs to user 65534" in warning)
    assert library.read_bytes() == other.read_bytes()  # nothing is written there either
    with pytest.raises(RuntimeError, match="is refused"):
        native_library.build_library("answer", SOURCE)


def test_a_sticky_parent_is_as_safe_as_tmp(cache, caplog):
    cache.parent.mkdir()
    cache.parent.chmod(0o1777)
    assert answer() == 42 and library_in(cache).exists() and warnings_of(caplog) == []


def test_where_nothing_can_be_kept_it_is_built_for_this_process(cache, caplog, monkeypatch):
    cache.parent.write_text("a file where a folder should be")
    assert answer() == 42
    (warning,) = warnings_of(caplog)
    assert "cannot be made" in warning and "for this process alone" in warning
    monkeypatch.delenv("ASTROFORMER_CACHE")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where there is neither HOME nor a user's entry
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert answer() == 42 and "no home folder" in warnings_of(caplog)[1]


# --------------------------------------------------------------------------------------------------------------------
# Building
# --------------------------------------------------------------------------------------------------------------------


def counting_compiler(tmp_path, more=""):
    """A compiler that writes down that it was called, and the file that it writes that into."""
    calls = tmp_path / "calls"
    return script(tmp_path / "counting", f'echo "$@" >> {calls}\n{more}\nexec {COMPILER} "$@"'), calls


def in_processes(number, function):
    """Starts copies of this process that run `function` and tell whether it returned."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function) for _ in range(number)]
    for process in processes:
        process.start()
    return processes


def expect_42():
    assert answer() == 42


def test_one_process_builds_for_all(cache, tmp_path, monkeypatch):
    compiler, calls = counting_compiler(tmp_path, "sleep 0.2")
    monkeypatch.setenv("CXX", str(compiler))
    processes = in_processes(5, expect_42)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 5
    assert len(calls.read_text().splitlines()) == 2  # compiled, and linked


def test_a_killed_build_leaves_neither_lock_nor_folder(cache, tmp_path, monkeypatch):
    compiler, calls = counting_compiler(tmp_path, "sleep 30")
    monkeypatch.setenv("CXX", str(compiler))
    (process,) = in_processes(1, answer)
    while not calls.exists():
        time.sleep(0.01)
    assert len(list(cache.glob(f"{native_library.BUILD_PREFIX}*"))) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.delenv("CXX")
    began = time.monotonic()
    assert answer() == 42 and time.monotonic() - began < 20
    assert len(list(cache.iterdir())) == 3


def test_where_the_file_system_has_no_locks(cache, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(native_library.fcntl, "flock", refuse)
    mine = cache / f"{native_library.BUILD_PREFIX}another_process"
    mine.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o700), cache.chmod(0o700)
    assert answer() == 42 and mine.exists()  # somebody may be building in it
    os.utime(mine, (0, 0))
    native_library.build_library("answer", SOURCE, rebuild=True)
    assert not mine.exists()


def test_the_compiler_may_have_arguments(cache, tmp_path, monkeypatch):
    compiler, calls = counting_compiler(tmp_path)
    wrapper = script(tmp_path / "wrap per", 'exec "$@"')
    monkeypatch.setenv("CXX", f"'{wrapper}' {compiler} -DX='1 2'")
    assert answer() == 42
    assert all(line.startswith("-DX=1 2 ") for line in calls.read_text().splitlines())
    native_library.build_library("answer", SOURCE)
    assert len(calls.read_text().splitlines()) == 2
    native_library.build_library("answer", SOURCE, rebuild=True)
    assert len(calls.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("no-such-c++ -x", "CXX names 'no-such-c\\+\\+ -x', which is not there"),
        ("'c++", "CXX is no command"),
        ("/bin/sh -c 'printf \"\\377\\376 is wrong\" >&2; exit 1'", "could not build it: \ufffd\ufffd is wrong"),
        ("false", "false could not build it: exit status 1"),
    ],
)
def test_a_compiler_that_fails_is_told_in_words(cache, monkeypatch, named, message):
    monkeypatch.setenv("CXX", named)
    with pytest.raises(RuntimeError, match=message):
        answer()


def test_names_that_are_not_text_do_no_harm(cache, tmp_path, monkeypatch):
    name = os.fsencode(tmp_path) + b"/\xff\xfe"
    Path(os.fsdecode(name)).write_bytes(bytes(4096))
    with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert name in Path("/proc/self/maps").read_bytes()
        assert answer() == 42
    monkeypatch.setenv("ASTROFORMER_CACHE", os.fsdecode(name + b" folder"))
    assert answer() == 42 and library_in(Path(os.fsdecode(name + b" folder"))).exists()


def test_the_openmp_runtime_is_that_of_torch(cache, tmp_path):
    runtime = Path(native_library._openmp_runtime())
    other = tmp_path / "libgomp.so.1"
    shutil.copy(runtime, other)
    ctypes.CDLL(str(other))  # mapped below those that came before, and so first in the list
    paths = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line]
    assert paths[0] == str(other)
    assert native_library._openmp_runtime() == str(runtime) != str(other)


def test_elsewhere_than_on_linux_nothing_is_built(cache, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(sys, "platform", "darwin")
    forget(neuron_astrocyte_cpu.LIBRARY)
    try:
        assert "on Linux only, and this is darwin" in neuron_astrocyte_cpu.LIBRARY.obstacle()
        assert "plain form" in caplog.text and warnings_of(caplog) == []
    finally:
        forget(neuron_astrocyte_cpu.LIBRARY)


# --------------------------------------------------------------------------------------------------------------------
# The library of neuron-astrocyte attention
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["none", "broken", "bytes"])
def test_without_a_compiler_the_plain_form_runs(cache, tmp_path, monkeypatch, caplog, compiler):
    binaries = tmp_path / "bin"
    binaries.mkdir()
    says = {"broken": "echo 'c++: cannot do that'", "bytes": "printf '\\377\\376: cannot'"}.get(compiler)
    if says:
        script(binaries / "c++", f"{says} >&2; exit 1")
    monkeypatch.setenv("PATH", f"{binaries}:/bin" if says else str(binaries))
    forget(neuron_astrocyte_cpu.LIBRARY)
    try:
        x = torch.ones(1, 2, 5, 3)
        assert choose_backend([], {}, [x]) is None
        assert neuron_astrocyte_attention(x, x, x).isfinite().all()
        expected = {"none": "no C++ compiler was found", "broken": "cannot do that", "bytes": "\ufffd\ufffd: cannot"}
        (warning,) = warnings_of(caplog)
        assert expected[compiler] in warning and "plain form" in warning and "ASTROFORMER_BACKEND" in warning
        with (
            attention_backend("cpp"),
            pytest.raises(RuntimeError, match=f"'cpp' was asked for, but it .*: {re.escape(expected[compiler])}"),
        ):
            neuron_astrocyte_attention(x, x, x)
    finally:
        forget(neuron_astrocyte_cpu.LIBRARY)


def test_without_a_compiler_hybrid_attention_runs_in_its_plain_form(cache, monkeypatch, caplog, tmp_path):
    x, maps = torch.ones(1, 2, 5, 3), HedgehogMap(torch.ones(2, 3, 4))
    inputs = {"synapses": Synapses(maps, maps, torch.ones(2, 1, 1)), "exact": ExactPart(2), "scaling": 1.0}
    with attention_backend("plain"):
        expected, _ = hybrid_attention(x, x, x, **inputs, causal=True)
    no_compiler(monkeypatch, tmp_path)
    for library in LIBRARIES:
        forget(library)
    try:
        torch.testing.assert_close(hybrid_attention(x, x, x, **inputs, causal=True)[0], expected)
        assert sum("Hybrid attention runs in its plain form" in warning for warning in warnings_of(caplog)) == 1
        with attention_backend("cpp"), pytest.raises(RuntimeError, match="it could not be built here"):
            hybrid_attention(x, x, x, **inputs, causal=True)
    finally:
        for library in LIBRARIES:
            forget(library)


def test_who_asks_for_the_plain_form_is_not_warned(cache, monkeypatch, caplog, tmp_path):
    no_compiler(monkeypatch, tmp_path)
    monkeypatch.setenv("ASTROFORMER_BACKEND", "plain")
    forget(neuron_astrocyte_cpu.LIBRARY)
    try:
        x = torch.ones(1, 2, 5, 3)
        neuron_astrocyte_attention(x, x, x)
        assert warnings_of(caplog) == []
    finally:
        forget(neuron_astrocyte_cpu.LIBRARY)


def test_the_command_builds_ahead(cache, capsys, monkeypatch):
    for library in LIBRARIES:
        monkeypatch.setattr(library, "source", SOURCE)
    assert build.main([]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert len(set(paths)) == 2 and all(path.parent == cache and path.is_file() for path in paths)
    monkeypatch.setenv("CXX", "false")
    assert build.main([]) == 0
    assert build.main(["--rebuild"]) == 1
    told = capsys.readouterr().err
    assert told == "The C++ library could not be built: false could not build it: exit status 1\n"
    cache.chmod(0o777)
    assert build.main([]) == 1
    assert "is refused" in capsys.readouterr().err
    cache.chmod(0o700)


def test_the_command_runs_as_a_module(cache, strangers, tmp_path):
    program = tmp_path / "program.py"
    program.write_text('import runpy\nrunpy.run_module("astroformer_hf.build", run_name="__main__")')  # as -m does
    environment = {"ASTROFORMER_CACHE": str(cache), "CXX": "no-such-compiler"}
    result = strangers.run(program, check=False, environment=environment)
    assert result.returncode == 1 and result.stdout == ""
    assert "CXX names 'no-such-compiler', which is not there" in result.stderr


# every compiler that the machine has, once each
PRESENT = {os.path.realpath(path): path for path in map(shutil.which, native_library.COMPILERS) if path}


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
@pytest.mark.parametrize("compiler", PRESENT.values())
def test_the_source_compiles_without_a_warning(compiler, library, tmp_path):
    source = tmp_path / "source.cpp"
    source.write_text(library.source)
    flags = native_library._recipe(library.name, library.source).flags
    command = [compiler, *flags, "-Wall", "-Wextra", "-Werror", "-c", source, "-o", tmp_path / "source.o"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "", result.stderr


def test_what_cpp_shares_with_python_is_generated():
    class _View(ctypes.Structure):
        _fields_ = [("data", ctypes.c_void_p)]

    class Arguments(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_int64),
            ("alpha", ctypes.c_double),
            ("key", _View),
            ("hebbian", ctypes.c_void_p),
        ]

    maps = ("relu", "elu")
    source = generate_source(arguments=Arguments, feature_maps=maps, calcium_floor=2e-9, exp_ceiling=20)
    fields = "    int64_t length;\n    double alpha;\n    View key;\n    float* hebbian;\n"
    assert f"struct Arguments {{\n{fields}" in source
    assert "enum FeatureMap { RELU, ELU };" in source
    assert "CALCIUM_FLOOR = 2e-09f, EXP_CEILING = 20.0f;" in source
    assert "$" not in source


def test_a_library_of_other_arguments_is_refused(monkeypatch, caplog):
    class Longer(ctypes.Structure):
        _fields_ = [*neuron_astrocyte_cpu._Arguments._fields_, ("more", ctypes.c_int64)]

    size = ctypes.sizeof(neuron_astrocyte_cpu._Arguments)
    monkeypatch.setattr(neuron_astrocyte_cpu.LIBRARY, "arguments", Longer)
    forget(neuron_astrocyte_cpu.LIBRARY)
    try:
        assert not neuron_astrocyte_cpu.LIBRARY.is_available()
        expected = f"takes a structure of {size} bytes as arguments .* passes one of {size + 8} bytes"
        assert re.search(expected, neuron_astrocyte_cpu.LIBRARY.obstacle())
        (warning,) = warnings_of(caplog)
        assert re.search(expected, warning) and "plain form" in warning
    finally:
        forget(neuron_astrocyte_cpu.LIBRARY)


# Inputs whose scratch memory is far larger than themselves and their results, in a process that may take little more.
LITTLE_MEMORY = """
import resource, sys, torch
from astroformer_hf import attention_backend
from astroformer_hf.attention_operation import attend
from astroformer_hf.token_layout import sequence_layout
torch.set_num_threads(int(sys.argv[1]))

def compute(length, causal):
    features = 64
    query = torch.zeros(1, 1, 1, features).expand(1, 1, length, features)
    layout = sequence_layout(length, "cpu", causal=causal)
    code = layout.activity(query, 1.0, torch.eye(features)[None], torch.zeros(1, 1, features))
    value = torch.zeros(1, 1, length, 1)
    limit = int(open("/proc/self/statm").read().split()[0]) * 4096 + (150 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        with attention_backend("cpp"):
            options = {"alpha": 0.5, "feature_map": "elu", "feedback": True, "random_projection": None}
            inputs = {"query": query, "key": query, "value": value, "astrocyte_code": code, "padding_mask": None}
            attend(**inputs, **options, causal=causal, initial_state=None)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

for causal in (False, True):
    compute(70, causal)
    try:
        compute(10**6, causal)
        print("computed")
    except MemoryError as error:
        print(error)
"""


@pytest.mark.parametrize("threads", some_each_time([1, 2], [2]))
def test_too_little_memory_is_an_error_in_words(threads, scripts, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(LITTLE_MEMORY)
    result = scripts.run(program, threads)
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line, function in zip(lines, ("write_forward", "causal_forward"), strict=True):
        assert "too little memory for neuron-astrocyte attention" in line and function in line, line


@pytest.mark.parametrize(
    "library, function", [(library, function) for library in LIBRARIES for function in library.functions]
)
def test_every_function_tells_that_memory_is_missing(library, function):
    length = 2**24 if function.startswith("distances") else 50  # which keep rows for each token, of any length
    sizes = {"batch": 1, "length": length, "head_dim": 2**24}
    if library is neuron_astrocyte_cpu.LIBRARY:
        sizes.update(heads=1, splits=1, features=2**24)
    else:
        sizes.update(key_heads=1, groups=1, chunks=2, map_columns=2**24, causal=1)
    for threads in (1, 2):
        arguments = library.arguments(threads=threads, **sizes)
        assert getattr(library._library_or_obstacle[0], function)(arguments) == 1
