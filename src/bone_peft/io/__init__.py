"""Reading what strangers wrote, writing whole or not at all.

Everything in a file is checked before a tensor is read, and nothing in it is run.
"""

from .json_file import read_json
from .safetensors_file import SafetensorsFile, read_safetensors
from .stored import StoredTensor
from .torch_file import TorchFile, read_torch

__all__ = ["SafetensorsFile", "StoredTensor", "TorchFile", "read_json", "read_safetensors", "read_torch"]
