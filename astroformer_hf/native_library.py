# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""A C++ source as a shared library: built by the machine's own compiler, kept in a cache, checked, and loaded.

What lies in the cache is run, so it is checked each time before it is loaded:

- The folder and all above it belong to this user or to root, and nobody else may write there (but in a folder with the
  sticky bit, as /tmp has, where nobody can touch another's files). Else the cache is refused, with a warning, and the
  library is built for this process alone, in a temporary folder that is gone when it is loaded.
- The library and the record beside it are regular files of this user or of root that nobody else may write to. They are
  made with mode 0700 and 0600, whatever the umask. The record holds the library's size and SHA-256. What is truncated,
  damaged or of another origin is built anew, with a warning.
- What is loaded is a sealed copy in memory of the bytes that were checked: what happens to the file later, even that it
  is cut short under a running process, changes nothing.

The name of a library says all that it depends on but the compiler: source, flags, CPU, C library and OpenMP runtime.
So a cache that was filled ahead is found where there is no compiler. One process builds and the others wait for it, at
a lock that the system takes back from a process that ends, however it ends; what such a one has left is cleared away.
"""

import contextlib
import ctypes
import functools
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch


try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


COMPILERS = ("c++", "g++", "clang++")
# NaN and infinity keep their meaning (no -ffast-math); a product and a sum may become one instruction
COMPILER_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast")
LONGEST_COMMAND = 300  # seconds that one run of the compiler may take
LARGEST_FILE = 2**26  # bytes; a library of this package has about 2**17
BUILD_PREFIX = "astroformer_hf_build_"  # of temporary folders

logger = logging.getLogger(__name__)


class UnsupportedPlatform(RuntimeError):
    """Nothing is ever built on this kind of machine."""


class NoCache(RuntimeError):
    """There is no cache that may be read and written; the message says why."""


class Recipe(NamedTuple):
    """What a library is made from, and the name it goes by."""

    name: str
    source: str
    flags: tuple[str, ...]
    runtime: str

    @property
    def library(self) -> str:
        return f"{self.name}.so"

    @property
    def record(self) -> str:
        return f"{self.name}.json"


class NativeLibrary:
    """The functions of a C++ source, which is built and loaded when one of them is first needed.

    Args:
        name, source (`str`): as of `load_library`.
        functions (sequence of `str`): what is called in it. Each takes a pointer to `arguments` and returns an int,
            which is 0 unless the machine has too little memory.
        arguments (`type[ctypes.Structure]`): whose size in C++ `size_of_arguments()` of the library tells.
        computes (`str`): what it computes, in messages.
    """

    def __init__(
        self, name: str, source: str, functions: Sequence[str], arguments: type[ctypes.Structure], computes: str
    ):
        self.name, self.source = name, source
        self.functions, self.arguments, self.computes = functions, arguments, computes

    def obstacle(self) -> str | None:
        """Why its functions cannot be called on this machine, or None if they can; the first call builds it."""
        return self._library_or_obstacle[1]

    def is_available(self) -> bool:
        """Whether its functions can be called on this machine; the first call builds it."""
        return self.obstacle() is None

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot compute on a device, or None if it can."""
        if device.type != "cpu":
            return f"the tensors are on {device}"
        return self.obstacle() and f"it could not be built here: {self.obstacle()}"

    def build(self, rebuild: bool = False) -> Path:
        """Builds it ahead: see `build_library`."""
        return build_library(self.name, self.source, rebuild)

    def call(self, function: str, arguments: ctypes.Structure, amount: str) -> None:
        """Calls a function.

        Args:
            function (`str`): one of `functions`.
            arguments (`ctypes.Structure`): what it takes.
            amount (`str`): how much that is, in the message of the error.

        Raises:
            MemoryError: the machine has too little memory for it.
        """
        library, _ = self._library_or_obstacle
        assert library is not None, "only a backend that is available is called"
        if getattr(library, function)(arguments):
            raise MemoryError(f"the machine has too little memory for {self.computes} ({function} on {amount})")

    @functools.cached_property
    def _library_or_obstacle(self) -> tuple[ctypes.CDLL | None, str | None]:
        """The library, ready to be called, and None; or None and why it is not to be had, which the log says once."""
        try:
            library = load_library(self.name, self.source)
            self._check_arguments(library)
        except (OSError, RuntimeError) as error:
            # where nobody could do anything about it, it is no warning
            level = logging.INFO if isinstance(error, UnsupportedPlatform) else logging.WARNING
            logger.log(
                level,
                "%s runs in its plain form on this CPU, which is slower: %s. ASTROFORMER_BACKEND=plain asks for no "
                "other.",
                self.computes.capitalize(),
                error,
            )
            return None, str(error)
        for function in self.functions:
            getattr(library, function).argtypes = [ctypes.POINTER(self.arguments)]
            getattr(library, function).restype = ctypes.c_int
        return library, None

    def _check_arguments(self, library: ctypes.CDLL) -> None:
        """Raises a RuntimeError if the functions of the library take other arguments than Python passes."""
        size_of_arguments = library.size_of_arguments
        size_of_arguments.argtypes = []
        size_of_arguments.restype = ctypes.c_int64
        size, expected = size_of_arguments(), ctypes.sizeof(self.arguments)
        if size != expected:
            raise RuntimeError(
                f"the C++ library takes a structure of {size} bytes as arguments where this version of astroformer_hf "
                f"passes one of {expected} bytes"
            )


def load_library(name: str, source: str) -> ctypes.CDLL:
    """The library of a C++ source, from the cache or built now, in a process that has imported torch.

    Args:
        name (`str`): what its files are called, before a hash.
        source (`str`): C++17, which may use OpenMP; PyTorch's own runtime serves it.

    Raises:
        UnsupportedPlatform: this is not Linux.
        RuntimeError, OSError: it cannot be built or loaded; the message says why.
    """
    recipe = _recipe(name, source)
    try:
        path, content = _from_cache(recipe)
    except NoCache as error:
        logger.warning("%s. The C++ library is built for this process alone, which takes seconds each time", error)
        with _folder_of_this_process() as folder:
            content = _compiled(recipe, folder)
            path = folder / recipe.library
            _write(path, content, 0o700)
            return _loaded(path, content)
    return _loaded(path, content)


def build_library(name: str, source: str, rebuild: bool = False) -> Path:
    """Builds the library of a C++ source ahead, unless it is in the cache already, and loads it to see that it runs.

    Args:
        name, source (`str`): as of `load_library`.
        rebuild (`bool`, defaults to `False`): build it even so, by another compiler, say.

    Returns:
        `Path` of the library in the cache.

    Raises:
        As `load_library`, and a RuntimeError also where there is no cache to keep it in.
    """
    path, content = _from_cache(_recipe(name, source), rebuild)
    _loaded(path, content)
    return path


# --------------------------------------------------------------------------------------------------------------------
# What a library depends on
# --------------------------------------------------------------------------------------------------------------------


def _recipe(name: str, source: str) -> Recipe:
    if sys.platform != "linux":
        raise UnsupportedPlatform(f"C++ is built on Linux only, and this is {sys.platform}")
    native = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    runtime, flags = _openmp_runtime(), (*COMPILER_FLAGS, native)
    identity = (source, flags, os.path.basename(runtime), _instruction_set(), platform.libc_ver())
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    return Recipe(f"{name}_{digest}", source, flags, runtime)


def _openmp_runtime() -> str:
    """Path of the OpenMP runtime that PyTorch itself computes with; others may be in the process, too."""
    mapped = []  # (first address, one past the last, path)
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        if path.startswith(b"/"):
            first, _, end = addresses.partition(b"-")
            mapped.append((int(first, 16), int(end, 16), os.fsdecode(path)))
    libraries = {path for *_, path in mapped if os.path.basename(path).startswith("libtorch_cpu.")}
    for library in sorted(libraries):
        with contextlib.suppress(OSError, AttributeError):
            # looked up as the library itself would: in it and in what it depends on
            function = ctypes.cast(ctypes.CDLL(library).omp_get_max_threads, ctypes.c_void_p).value or 0
            return next(path for first, end, path in mapped if first <= function < end)
    raise RuntimeError("PyTorch has loaded no OpenMP runtime")


def _instruction_set() -> str:
    """What tells CPUs apart that a library built for one might not run on: a home may be shared between machines."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


# --------------------------------------------------------------------------------------------------------------------
# The cache
# --------------------------------------------------------------------------------------------------------------------


def _from_cache(recipe: Recipe, rebuild: bool = False) -> tuple[Path, bytes]:
    """Path and content of the library in the cache, where it is put if it is not there."""
    folder = _cache_folder()
    content = None if rebuild else _kept(folder, recipe)
    if content is None:
        try:
            with _lock(folder) as is_alone:
                if not rebuild:  # another process may have built it while this one waited
                    content = _kept(folder, recipe, complain=True)
                if content is None:
                    content = _built_in(folder, recipe, is_alone)
        except OSError as error:
            raise NoCache(f"The cache {folder} cannot be written to ({error})") from error
    return folder / recipe.library, content


def _cache_folder() -> Path:
    """The folder of the cache, made if need be.

    Raises:
        NoCache: others may write to what would be run, or it cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    named = os.path.expanduser(os.environ.get("ASTROFORMER_CACHE") or os.path.join(base, "astroformer_hf"))
    if named.startswith("~"):
        raise NoCache("There is no home folder for a cache; name a folder in ASTROFORMER_CACHE")
    path = Path(os.path.realpath(named))
    try:
        for folder in reversed((path, *path.parents)):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        obstacle = _who_else_may_write(path)
    except OSError as error:
        raise NoCache(f"The cache {path} cannot be made ({error})") from error
    if obstacle is not None:
        raise NoCache(
            f"The cache {path} is refused, because what lies in it is run, and {obstacle}. Make it yours alone "
            "(chown, chmod go-w), or name another folder in ASTROFORMER_CACHE"
        )
    return path


def _who_else_may_write(path: Path) -> str | None:
    """Why others could put something in place of a folder or of what is in it, or None if they cannot."""
    trusted = {0, os.geteuid()}
    for folder in (path, *path.parents):
        status = folder.stat()
        if status.st_uid not in trusted and (folder == path or status.st_uid != os.stat("/").st_uid):
            return f"{folder} belongs to user {status.st_uid}"
        is_sticky = folder != path and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o022 and not is_sticky:
            return f"others may write to {folder} (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def _kept(folder: Path, recipe: Recipe, complain: bool = False) -> bytes | None:
    """Content of the library in the cache, None if there is none or not the one that was built."""
    path = folder / recipe.library
    if not os.path.lexists(path):
        return None
    try:
        record = json.loads(_read(folder / recipe.record))
        content = _read(path)
        if record["size"] != len(content) or record["sha256"] != hashlib.sha256(content).hexdigest():
            raise ValueError("it is not what was built")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if complain:
            logger.warning("The C++ library %s is not loaded but built again: %s", path, error)
        return None
    return content


def _read(path: Path) -> bytes:
    """Content of a file that nobody else can have written."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if status.st_uid not in (0, os.geteuid()):
            raise ValueError(f"{path} belongs to user {status.st_uid}")
        if status.st_mode & 0o022:
            raise ValueError(f"others may write to {path} (mode {stat.S_IMODE(status.st_mode):04o})")
        if status.st_size > LARGEST_FILE:
            raise ValueError(f"{path} has {status.st_size:,} bytes")
        return file.read()


def _built_in(folder: Path, recipe: Recipe, is_alone: bool) -> bytes:
    """Builds the library in the cache; returns its content."""
    _clear_left(folder, 0 if is_alone else 2 * LONGEST_COMMAND)
    with tempfile.TemporaryDirectory(prefix=BUILD_PREFIX, dir=folder) as temporary:
        building = Path(temporary)
        logger.info("Compiling C++ for this CPU into %s, once", folder / recipe.library)
        content = _compiled(recipe, building)
        record = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        _write(building / recipe.library, content, 0o700)
        _write(building / recipe.record, json.dumps(record).encode(), 0o600)
        for name in (recipe.library, recipe.record):  # each whole or not at all, and checked against the other
            os.replace(building / name, folder / name)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return content


def _write(path: Path, content: bytes, mode: int) -> None:
    """Makes a file that is on the disk when this returns, with this mode whatever the umask."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Waits until no other process builds in a folder; gives whether that is sure: not all file systems have locks."""
    descriptor = os.open(folder / "build.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    is_alone, last = False, time.monotonic() + 2 * LONGEST_COMMAND
    try:
        while not is_alone:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_alone = True
            except BlockingIOError:
                if time.monotonic() > last:
                    raise TimeoutError("another process has been building in it for too long") from None
                time.sleep(0.05)
            except OSError:
                break
        yield is_alone
    finally:
        if is_alone:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # of a process that was forked meanwhile, too
        os.close(descriptor)


def _clear_left(folder: Path, age: float) -> None:
    """Removes what builds have left that were killed: temporary folders of this user, so many seconds old."""
    for left in folder.glob(f"{BUILD_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = left.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and time.time() - status.st_mtime >= age:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _folder_of_this_process() -> Iterator[Path]:
    """A temporary folder that is this user's alone."""
    base = Path(os.path.realpath(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=BUILD_PREFIX, dir=base) as folder:
        obstacle = _who_else_may_write(Path(folder))
        if obstacle is not None:
            raise RuntimeError(f"no temporary folder is safe: {obstacle}")
        _clear_left(base, 2 * LONGEST_COMMAND)
        yield Path(folder)


# --------------------------------------------------------------------------------------------------------------------
# Compiling and loading
# --------------------------------------------------------------------------------------------------------------------


def _compiled(recipe: Recipe, folder: Path) -> bytes:
    """Compiles the source in a folder; returns the content of the library."""
    compiler = _compiler()
    source, compiled, linked = (folder / f"source{suffix}" for suffix in (".cpp", ".o", ".linked"))
    source.write_text(recipe.source, encoding="utf-8")
    _run(*compiler, *recipe.flags, "-c", source, "-o", compiled)
    # linked with PyTorch's own OpenMP runtime: the threads of two would stand in each other's way
    _run(*compiler, "-shared", "-Wl,-z,defs", compiled, recipe.runtime, "-o", linked)
    return linked.read_bytes()


def _compiler() -> list[str]:
    """The command of the compiler: what `CXX` names, which may have arguments ("ccache g++"), or the first found."""
    named = os.environ.get("CXX", "")
    try:
        command = shlex.split(named)
    except ValueError as error:
        raise RuntimeError(f"CXX is no command ({error}): {named!r}") from error
    if command:
        if shutil.which(command[0]) is None:
            raise RuntimeError(f"no C++ compiler was found: CXX names {named!r}, which is not there")
        return command
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise RuntimeError(f"no C++ compiler was found; install one of {', '.join(COMPILERS)}, or name it in CXX")
    return [found]


def _run(*parts: str | Path) -> None:
    command = [os.fspath(part) for part in parts]
    try:
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST_COMMAND)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} took more than {LONGEST_COMMAND} s") from error
    except OSError as error:
        raise RuntimeError(f"{command[0]} could not be run: {error}") from error
    if process.returncode:
        lines = process.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        raise RuntimeError(f"{command[0]} could not build it: {lines[0]}")


def _loaded(path: Path, content: bytes) -> ctypes.CDLL:
    """Loads exactly `content`; where the system has no memory that can be run, what lies at `path`."""
    try:
        descriptor = os.memfd_create(path.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        # It stays open: the loader knows a library by its path, and the next one must not get the same.
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except (AttributeError, OSError):
        return ctypes.CDLL(str(path))
