"""What a command says on stderr: how it goes, what was written, what to run next, what an error of a library means."""

import errno
import os

import typer

from edgeqlora_jetson.screen import visible


def say(message: str) -> None:
    """A line for the user; stdout is kept for results."""
    typer.echo(visible(message), err=True)


def show(result: str) -> None:
    """A result on stdout; names and texts of files in it cannot steer the terminal."""
    typer.echo(visible(result))


def done(wrote: str, following: str) -> None:
    """The last line of every command; following: a command of screen.command_line, or what to do in words."""
    say(f"Done: {wrote}. Next: {following}")


def explain(error: Exception) -> str | None:
    """What the user can do about an error that a library raised; None if it is not for the user to correct."""
    if _raised_in(error, "torchaudio"):
        # transformers imports torchaudio for every audio model: one that does not match torch stops every command.
        from edgeqlora.data.augment import torchaudio_mismatch

        return torchaudio_mismatch(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return f"cannot write {error.filename or 'output'}: {error.strerror}; make room or choose another folder"
    if type(error).__name__ == "OutOfMemoryError":  # by name, as below
        return (
            f"the GPU's memory is full ({'. '.join(str(error).split('. ')[:2])}): stop what else uses it (nvidia-smi), or take less "
            "(train: --gradient-accumulation, --gradient-checkpointing, a shorter --window-s), or compute on the "
            "processor (CUDA_VISIBLE_DEVICES= before the command)"
        )
    if type(error).__name__ == "SafetensorError":  # by name: importing it would slow every command down
        if "while serializing" in str(error):
            return f"weights cannot be written ({error}): make room or choose another folder"
        return f"weights cannot be read ({error}): the file is damaged or cut short, copy or make it again"
    return None


def _raised_in(error: BaseException | None, package: str) -> bool:
    """Whether the error, or one that it was raised from, came up inside the files of `package`."""
    import traceback

    while error is not None:
        frames = traceback.walk_tb(error.__traceback__)
        if any(f"{os.sep}{package}{os.sep}" in frame.f_code.co_filename for frame, _ in frames):
            return True
        error = error.__cause__ or error.__context__
    return False
