"""Functions of the API with the signature that a release of NKI gives them, and errors that say what another one has.

``checked`` makes a function of its own for each, with that signature written out: a call costs one more Python frame.
Instructions of the latest release need none; they check themselves (``isa/instruction.py``).
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

from trnsim import releases
from trnsim.errors import CompilerError
from trnsim.isa import constants
from trnsim.isa.alu import ALU
from trnsim.machine import core as machine
from trnsim.releases import LATEST, MISSING, CallError

ENUMS: dict[str, type[Enum]] = {
    "dge_mode": constants.dge_mode,
    "oob_mode": constants.oob_mode,
    "engine": constants.engine,
    "reduce_cmd": constants.reduce_cmd,
}
_NAMES = {name: getattr(constants, name) for name in constants.__dict__ if not name.startswith("_")}
_NAMES |= {"equal": ALU["equal"], "maximum": ALU["maximum"], "required": MISSING}
_PACKAGE = os.path.dirname(releases.__file__).removesuffix("releases")
_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def as_enum(kind: type[Enum], value: Any) -> Any:
    """The member with that number: NKI 0.2 took numbers for its enums."""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return kind(value)
        except ValueError:
            raise CompilerError(f"{kind.__name__} has no member {value}", operand=kind.__name__, value=value) from None
    return value


def _buffer(name: str, version: str, value: str) -> CallError:
    return CallError(
        f"{name} of NKI {version} takes no string for buffer: strings are NKI 0.2's; use nl.{value}",
        instruction=name.rpartition(".")[2],
        operand="buffer",
        value=value,
    )


def signature(name: str, function: Callable[..., Any], version: str) -> inspect.Signature:
    """The signature that a release gives to ``name``."""
    row = releases.find_signature(name, version)
    if row is None:
        return inspect.signature(function)
    scope: dict[str, Any] = {}
    exec(compile(f"def call{row.text}: ...", f"<{name}>", "exec"), dict(_NAMES), scope)  # noqa: S102
    return inspect.signature(scope["call"])


def checked(
    function: Callable[..., Any], name: str, version: str = LATEST, target: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """``name`` (``nki.isa.iota``) as ``version`` has it; calls ``target`` (default: ``function``).

    The result raises CompilerError for calls that its signature does not allow, naming the release that does. A
    function of any arguments is returned as it is.
    """
    function = getattr(function, "unchecked", function)
    form = signature(name, function, version)
    parameters = list(form.parameters.values())
    if any(p.kind in _VARIADIC for p in parameters):
        return function
    known = [p.name for p in parameters]
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty or p.default is MISSING]
    scope: dict[str, Any] = {"_M": MISSING, "_target": target or function, "_enum": as_enum, "_enums": ENUMS}
    scope |= {f"_d_{p.name}": p.default for p in parameters if p.name not in required}
    scope |= {
        "_many": lambda: releases.too_many_arguments(name, version, known),
        "_wrong": lambda given: releases.wrong_keywords(name, given, version, known),
        "_lacks": lambda given: releases.missing_arguments(
            name, [n for n, value in zip(required, given, strict=True) if value is MISSING], version, known
        ),
        "_buffer": lambda value: _buffer(name, version, value),
    }
    written = [f"{p.name}={'_M' if p.name in required else f'_d_{p.name}'}" for p in parameters]
    keyword_only = next((i for i, p in enumerate(parameters) if p.kind is _KEYWORD_ONLY), len(parameters))
    written.insert(keyword_only, "*_more_")
    body = ["if _more_: raise _many()", "if _other_: raise _wrong(_other_)"]
    if required:
        body.append(f"if {' or '.join(f'{n} is _M' for n in required)}: raise _lacks(({', '.join(required)},))")
    if version == "0.2":
        body += [f"{n} = _enum(_enums[{n!r}], {n})" for n in known if n in ENUMS]
    elif "buffer" in known:
        body.append("if buffer.__class__ is str: raise _buffer(buffer)")
    same = target is None and releases.find_signature(name, version) is None and keyword_only == len(parameters)
    body.append(f"return _target({', '.join(known) if same else ', '.join(f'{n}={n}' for n in known)})")
    short = name.rpartition(".")[2]
    source = f"def {short}({', '.join(written)}, **_other_):\n    " + "\n    ".join(body)
    exec(compile(source, f"<{name}>", "exec"), scope)  # noqa: S102
    result: Any = functools.update_wrapper(scope[short], function)
    del result.__wrapped__
    result.unchecked = function
    result.__signature__ = form
    return result  # type: ignore[no-any-return]


def guard(names: dict[str, Any], module: str, public: list[str]) -> None:
    """Put checked functions of the latest release in the place of a module's ``public`` functions."""
    for name in public:
        value = names[name]
        if inspect.isfunction(value) and not hasattr(value, "instruction"):
            names[name] = checked(value, f"{module}.{name}")


_BEFORE_VIEWS = ("0.2", "0.3", "0.4")  # releases whose tensors have reshape, view and ap only


def _since_views(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        core = machine._current
        if core is not None and core.launch.release.version in _BEFORE_VIEWS:
            caller = sys._getframe(1).f_code.co_filename
            if not caller.startswith((_PACKAGE, "<nki.")):
                raise releases.missing_name("nki.language.NkiTensor", name, core.launch.release.version)
        return method(self, *args, **kwargs)

    return call


def guard_methods(tensor: type) -> None:
    """Let the methods of tensors that not every release has raise in those that have not, when a kernel calls them."""
    for name in list(vars(tensor)):
        if releases.find_name(f"nki.language.NkiTensor.{name}") is not None:
            setattr(tensor, name, _since_views(getattr(tensor, name), name))


def _later_calls(function: Callable[..., Any], name: str, latest: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NKI 0.1, most of which take any keyword, that refuses what only later releases have."""
    own = inspect.signature(function).parameters
    known = [p.name for p in own.values() if p.kind not in _VARIADIC]
    most = sum(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in own.values())
    later = set(inspect.signature(latest).parameters) - set(known) - {"name"}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > most:
            raise releases.too_many_arguments(name, "0.1", known)
        if not later.isdisjoint(kwargs):
            raise releases.wrong_keywords(name, later & kwargs.keys(), "0.1", known)
        return function(*args, **kwargs)

    named: Any = call
    named.__code__ = named.__code__.replace(co_name=function.__name__)  # messages of NKI 0.1 name a call by its frame
    return call


def guard_first(names: dict[str, Any], module: str, public: list[str], latest: Any) -> None:
    """The same for a module of NKI 0.1; ``latest`` is the module of today."""
    for name in public:
        value = names[name]
        today = getattr(latest, name, None)
        if inspect.isfunction(value) and inspect.isfunction(today) and value is not today:
            names[name] = _later_calls(value, f"{module}.{name}", today)
