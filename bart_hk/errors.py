"""The exception of every room that reads files."""


class CheckpointError(ValueError):
    """A file of a model is damaged, hostile, cut short, or something else than its name says.

    One line: the file, the member or tensor in it, and what is wrong. A file that is not there is a
    FileNotFoundError, and a disk that fails an OSError.
    """
