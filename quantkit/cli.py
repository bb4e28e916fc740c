"""The command line: parse, call one pipeline function, print."""

import os
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from quantkit.commands.check import check
from quantkit.commands.download import download
from quantkit.commands.gguf import gguf
from quantkit.commands.gptq import gptq, plan
from quantkit.commands.init import init
from quantkit.commands.push import push
from quantkit.commands.release import release
from quantkit.commands.verify import verify
from quantkit.errors import OutOfMemoryError, QuantkitError, UsageError, is_out_of_memory
from quantkit.signals import Leaving, Terminated, end_process, leave

# typer carries its own copy of click since 0.29; its public exceptions lead to either.
ClickException: Any = typer.BadParameter.__bases__[0].__bases__[0]

app = typer.Typer(
    name="quantkit",
    help="Turn a published language-model checkpoint into quantized files, in bounded memory.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

for command in (download, gptq, plan, gguf, check, init, push, verify, release):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    if version:
        from quantkit.versions import version as own_version

        print(own_version())
        raise typer.Exit


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with the documented exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Idle threads sleep instead of spinning: torch and numba bring a thread pool each, and spinning
    # ones take the cores from one another. Read when torch is imported, hence here.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    code = _run(arguments, debug)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        end_process(code)
    sys.exit(code)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        with Leaving():
            code = app(args=arguments or ["--help"], prog_name="quantkit", standalone_mode=False)
        if code == 128 + signal.SIGINT:  # typer has caught the interruption itself
            return leave(signal.SIGINT)
        return code if isinstance(code, int) else 0
    except QuantkitError as error:
        return _fail(error, debug)
    except ClickException as error:
        return _fail(_usage_error(error), debug)
    except (KeyboardInterrupt, typer.Abort):
        return leave(signal.SIGINT)
    except Terminated:
        return leave(signal.SIGTERM)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(OutOfMemoryError("out of memory", "finished layers are kept; free memory and try again"), debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _usage_error(error: Exception) -> UsageError:
    """What typer found wrong with the arguments, in our form."""
    message = str(getattr(error, "format_message", lambda: error)()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "quantkit"
    return UsageError(message[:1].lower() + message[1:], f"{command} --help lists the options")


def _fail(error: QuantkitError, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"quantkit: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    main()
