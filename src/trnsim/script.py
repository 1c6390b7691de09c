"""Running a user's Python file as ``trnsim run`` and ``trnsim profile`` do."""

from __future__ import annotations

import linecache
import os
import re
import sys
import traceback
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from trnsim.errors import InputError, InternalError, TrnsimError
from trnsim.installation import install, missing_import

if TYPE_CHECKING:
    from trnsim.session import Session

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class ScriptError(Exception):
    """The user's file failed; the text says where. ``status`` is the exit status."""

    def __init__(self, text: str, status: int = 2) -> None:
        super().__init__(text)
        self.status = status


def read_source(path: str) -> bytes:
    """The content of a Python file.

    Raises:
        InputError: it does not exist, or is not Python.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path} is not a file")
    source = file.read_bytes()
    _compiled(path, source)
    return source


def compile_file(path: str) -> CodeType:
    """The compiled file; raises InputError as ``read_source``."""
    return _compiled(path, read_source(path))


def _compiled(path: str, source: bytes) -> CodeType:
    try:
        return compile(source, str(Path(path)), "exec")
    except SyntaxError as error:
        where = f"{path}:{error.lineno}" if error.lineno else path
        raise InputError(f"{where} is not valid Python: {error.msg}") from None
    except ValueError as error:
        raise InputError(f"{path} is not a Python file: {error}") from None


def run_script(path: str, arguments: list[str], nki_version: str | None = None) -> int:
    """Run ``path`` as ``__main__`` with ``import nki`` meaning ours; returns its exit status.

    ``nki_version`` is the release of NKI it is written for; see ``trnsim.install``.

    Raises:
        ScriptError: the script raised; the message shows the script's own frames.
    """
    code = compile_file(path)
    install(nki_version=nki_version, source=path)
    file = str(Path(path))
    module = ModuleType("__main__")
    module.__file__ = file
    module.__dict__["__builtins__"] = __builtins__
    before = (sys.argv, sys.path[:], sys.modules.get("__main__"))
    sys.argv = [file, *arguments]
    sys.path.insert(0, str(Path(path).resolve().parent))
    sys.modules["__main__"] = module
    try:
        exec(code, module.__dict__)  # noqa: S102
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        raise script_error(error, file) from error
    finally:
        sys.argv, sys.path[:] = before[0], before[1]
        if before[2] is not None:
            sys.modules["__main__"] = before[2]
    return 0


def script_error(error: Exception, file: str) -> Exception:
    """An error that shows the user's frames only, unless the bug is ours."""
    if isinstance(error, InternalError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    shown = [f for f in frames if not f.filename.startswith((_HERE, "<frozen", "<nki."))]
    if isinstance(error, TrnsimError):
        lines = [f"error ({error.kind}): {error}"]
        location = error.location
        if location is not None:
            text = linecache.getline(location.file, location.line).strip()
            if text:
                lines.append(f"    {text}")
        return ScriptError("\n".join(lines))
    if frames and frames[-1].filename.startswith(_HERE) and not _is_users(error):
        return error
    if isinstance(error, ImportError):
        known = missing_import(error)
        if known is not None:
            place = f"\n  at {shown[-1].filename}:{shown[-1].lineno}" if shown else ""
            return ScriptError(f"error ({known.kind}): {known}{place}")
    text = "".join(traceback.format_list(shown))
    return ScriptError(f"{file} raised {type(error).__name__}: {error}\n{text}".rstrip())


def _is_users(error: Exception) -> bool:
    """Errors that Python raises for wrong calls and indices are the script's, though they surface inside trnsim."""
    return isinstance(error, (TypeError, IndexError, ImportError, AttributeError))


def split_target(target: str) -> tuple[str, str, tuple[int, ...]]:
    """File, kernel and launch grid of ``FILE.py:KERNEL`` or ``FILE.py:KERNEL[2,4]``.

    Raises:
        InputError: it is not written so.
    """
    path, colon, name = target.rpartition(":")
    if not colon or not path:
        raise InputError(f"{target!r} must be FILE.py:KERNEL")
    name, bracket, grid = name.partition("[")
    if bracket and not re.fullmatch(r"[0-9]+(,[0-9]+)*\]", grid.replace(" ", "")):
        raise InputError(f"{target!r}: a launch grid is written KERNEL[2] or KERNEL[2,4]")
    return path, name, tuple(int(n) for n in grid.rstrip("]").split(",")) if bracket else ()


def profile_kernel(
    target: str, arguments: list[str], session: Session, nki_version: str | None = None, code: CodeType | None = None
) -> None:
    """Run kernel ``FILE.py:KERNEL`` once with arguments given as text; ``KERNEL[2,4]`` launches it on a grid.

    ``code``: what to run as the file, instead of compiling it.
    """
    from trnsim.api import parse_argument
    from trnsim.nki.kernel import as_kernel

    path, name, grid = split_target(target)
    code = code or compile_file(path)
    release = install(nki_version=nki_version, source=path)
    module = ModuleType("trnsim_profiled")
    module.__file__ = str(Path(path))
    sys.path.insert(0, str(Path(path).resolve().parent))
    sys.modules["trnsim_profiled"] = module
    try:
        exec(code, module.__dict__)  # noqa: S102
        kernel: Any = module.__dict__.get(name)
        if kernel is None or not callable(kernel):
            known = sorted(k for k, v in module.__dict__.items() if callable(getattr(v, "launch", None)))
            raise InputError(f"{path} has no kernel {name!r}; it has {', '.join(known) or 'none'}")
        kernel = as_kernel(kernel, release)
        if grid:
            kernel = kernel[grid]
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for item in arguments:
            key, equals, text = item.partition("=")
            if equals and key.isidentifier():
                named[key] = parse_argument(text)
            else:
                positional.append(parse_argument(item))
        kernel.launch(tuple(positional), named, session.options)
    except TrnsimError as error:
        raise script_error(error, path) from error
    except Exception as error:
        raise script_error(error, path) from error
    finally:
        sys.path.pop(0)
