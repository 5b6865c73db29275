"""All commands, and what becomes of errors."""

import errno
import os
import sys

import typer

from steadytune import __version__
from steadytune.cli import compare, predict, pretrain, report, show, soup, study, train

# What safetensors and torch.save say when a file cannot be written to its end; seen on a full file system.
_DISK_IS_FULL = (f"(os error {errno.ENOSPC})", "PytorchStreamWriter failed", "unexpected pos", "iostream error")

app = typer.Typer(
    name="steadytune",
    help="Fine-tune pre-trained Transformer encoders with regularizers, steadily.",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("study")(study.study)
app.command("report")(report.report)
app.command("soup")(soup.soup)
app.command("pretrain")(pretrain.pretrain)
app.command("evaluate")(predict.evaluate)
app.command("predict")(predict.predict)
app.command("methods")(show.methods)
app.command("recipes")(show.recipes)
app.command("doctor")(show.doctor)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> int:
    """Run the command line.

    Returns:
        0 done, 1 failed, 2 bad usage or bad input, 130 stopped.
    """
    command, words = typer.main.get_command(app), sys.argv[1:]
    try:
        code = command.main(words or ["--help"], "steadytune", standalone_mode=False) or (0 if words else 2)
    except typer.TyperException as error:  # wrong usage
        return _refuse(_usage(error))
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader is gone; keep the interpreter's exit quiet
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _refuse(_full(error.filename))
        if isinstance(error, PermissionError):
            return _refuse(f"no permission to use {error.filename}; choose another place.")
        if error.strerror and error.filename:
            return _refuse(f"{error.filename!s:.80} cannot be used: {error.strerror.lower()}.")
        raise
    except ValueError as error:
        if type(error).__module__.startswith("steadytune."):  # raised for the user, one sentence
            return _refuse(str(error))
        raise
    except Exception as error:
        if any(words in str(error) for words in _DISK_IS_FULL):
            return _refuse(_full(None))
        raise
    if code == 130:  # typer's word for Ctrl-C
        print("steadytune: stopped; a training run goes on when its command is repeated.", file=sys.stderr)
    return int(code)


def _usage(error: typer.TyperException) -> str:
    """One sentence: the option, what is allowed, what came."""
    said, option = error.format_message().strip().rstrip("."), getattr(error, "param", None)
    problems = getattr(error.__cause__, "errors", None)  # of pydantic, which typer reads values with
    if option is None or problems is None:
        said = f"{said[:1].lower()}{said[1:]}".replace(". Did", "; did")
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "steadytune"
        return said if said.endswith("?") else f"{said}; see {command} --help."
    problem = problems()[0]
    allowed = problem["msg"].removeprefix("Input should be ").split(",")[0]
    return f"{option.opts[0]} must be {allowed}; got {problem['input']!r}."


def _full(place: str | None) -> str:
    return f"no space left to write {place or 'the output'}; free some and repeat."


def _refuse(sentence: str) -> int:
    print(f"steadytune: {' '.join(sentence.splitlines())}", file=sys.stderr)
    return 2
