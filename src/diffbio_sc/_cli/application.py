"""The application: tokens of the shell to a command, errors to exit codes."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from diffbio_sc._cli.commands import COMMANDS, SUITE, Call, Command

_SESSION = {"force": False, "verbose": 0, "quiet": False}

# A lone hyphen, standard output, looks like the start of an option to a parser: it goes by this name meanwhile.
_STREAM = "<standard output>"

FAILED, WRONG_USAGE, BROKEN_PIPE, INTERRUPTED = 1, 2, 141, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 is success, 1 an error of the input or of a file, 2 wrong usage, 130 an interrupt, 141 a closed pipe.
    """
    tokens = [_STREAM if token == "-" else token for token in (sys.argv[1:] if arguments is None else arguments)]
    try:
        status = _application(tokens)
    except BrokenPipeError:
        _flush_to_nowhere()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("diffbio-sc: interrupted", file=sys.stderr)
        return INTERRUPTED
    if status == FAILED:
        try:
            sys.stdout.flush()
        except OSError:  # of which was told already
            _flush_to_nowhere()
    return status


def _flush_to_nowhere() -> None:
    """Python flushes standard output once more at its end: let that not fail, with a status of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _application(tokens: list[str]) -> int:
    if tokens[:1] == [SUITE]:
        from diffbio_sc.benchmarks.command import main as run_suites

        return run_suites(tokens[1:])

    from cyclopts import App, CycloptsError

    from diffbio_sc import __version__

    application = App(
        name="diffbio-sc",
        help="Differentiable operators for single-cell, spatial and epigenomic data.",
        version=__version__,
        help_format="plaintext",
    )
    asked = {command.name for command in COMMANDS} & set(tokens[:1])
    for command in COMMANDS:
        # A function is imported only for the command that was asked for, or where all are needed, as in a completion.
        known = command.name in asked or any(token.startswith("--install-completion") for token in tokens)
        application.command(_handler(command, known), name=command.name, help=_help(command, known))
    application.register_install_completion_command()
    if not tokens:
        names = ", ".join(command.name for command in COMMANDS)
        print(f"diffbio-sc: no command given; commands: {names}.\nHelp: diffbio-sc --help", file=sys.stderr)
        return WRONG_USAGE
    try:
        status = application(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(
            f"diffbio-sc: error: {error}\nHelp: diffbio-sc {' '.join(asked)} --help".replace("  ", " "), file=sys.stderr
        )
        return WRONG_USAGE
    return int(status or 0)


def _help(command: Command, known: bool) -> str:
    """Help of a command: its line alone in the list, and what its function's docstring says where it is asked for."""
    from diffbio_sc._cli.shell_types import summary

    if not known:
        return command.text
    function = command.function()
    parts = [command.text, *([summary(function)] if function else [])]
    if command.examples:
        parts.append("For example\n\n" + "\n".join(f"  {line}" for line in command.examples.splitlines()))
    return "\n\n".join(parts)


def _handler(command: Command, known: bool) -> Any:
    """Function with the signature that the shell sees."""
    from diffbio_sc._cli.shell_types import argument, option, shell_options

    function = command.function() if known else None
    own = [
        option(
            entry.name,
            entry.kind,
            entry.default if entry.default is not None else _default(entry.kind),
            entry.text,
            **({"alias": entry.alias} if entry.alias else {}),
        )
        for entry in command.options
    ]
    names = {parameter.name for parameter in own}
    of_function = shell_options(function, without=(*command.without, *names)) if function else []
    session = [
        option("force", bool, False, "Overwrite files that exist.", negative=()),
        option("verbose", int, 0, "Say more: -v, -vv.", alias="-v", count=True, negative=()),
        option("quiet", bool, False, "Say nothing but errors; no progress bar.", alias="-q", negative=()),
    ]
    positional = [argument(name, text, many=command.many) for name, text in command.arguments]

    def handler(*paths: str, **options: Any) -> int:
        force, verbose, quiet = (options.pop(name, default) for name, default in _SESSION.items())
        given = {parameter.name: options.get(parameter.name, parameter.default) for parameter in own}
        given = {name: "-" if value == _STREAM else value for name, value in given.items()}
        paths = tuple("-" if path == _STREAM else path for path in paths)
        keywords = {parameter.name: options[parameter.name] for parameter in of_function if parameter.name in options}
        return _run(command, Call(paths, given, keywords, force), verbose=verbose, quiet=quiet)

    parameters = [*positional, *own, *of_function, *session]
    handler.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    handler.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return handler


def _default(kind: Any) -> Any:
    """No default for an option that must be given, None for one that may be left out."""
    return inspect.Parameter.empty if isinstance(kind, type) else None


def _run(command: Command, call: Call, *, verbose: int, quiet: bool) -> int:
    from diffbio_sc._settings import settings

    level = 0 if quiet else min(1 + verbose, 4)
    function = command.function()
    if function is not None:
        from diffbio_sc._options import check_call

        try:
            check_call(function, call.keywords)
        except (ValueError, TypeError) as error:
            message = _in_words_of_the_shell(_message(error), call.keywords)
            print(f"diffbio-sc {command.name}: error: {message}", file=sys.stderr)
            return WRONG_USAGE
    try:
        with (
            settings.override(verbosity=level, progress_bar=settings.progress_bar and not quiet),
            _warnings_in_one_line(command.name, quiet),
        ):
            assert command.run is not None
            command.run(call)
    except BrokenPipeError:
        raise
    except (ValueError, KeyError, TypeError, ImportError, OSError, MemoryError) as error:
        if level >= 3:
            raise
        print(f"diffbio-sc {command.name}: error: {_message(error)}", file=sys.stderr)
        return FAILED
    return 0


def _in_words_of_the_shell(message: str, names: Mapping[str, Any]) -> str:
    """A message of a function, with the option as the shell writes it where it begins with its name."""
    name, _, rest = message.partition(" ")
    return f"--{name.replace('_', '-')} {rest}" if name in names else message


@contextmanager
def _warnings_in_one_line(name: str, quiet: bool) -> Iterator[None]:
    """Tell warnings for users as errors are told; those for developers stay silent."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"diffbio-sc {name}: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        if quiet:
            warnings.simplefilter("ignore")
        warnings.showwarning = show
        yield


def _message(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename!r}" if error.filename else error.strerror
    return str(error) or type(error).__name__
