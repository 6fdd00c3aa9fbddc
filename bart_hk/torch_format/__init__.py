"""The files of `torch.save`, read and written without torch; nothing in a file is ever run."""

from bart_hk.torch_format.objects import Namespace
from bart_hk.torch_format.reading import give_back, mapped_file, read_torch
from bart_hk.torch_format.writing import write_torch

__all__ = ["Namespace", "give_back", "mapped_file", "read_torch", "write_torch"]
