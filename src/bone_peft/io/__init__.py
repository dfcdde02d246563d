"""Files of strangers: everything is checked before a tensor is read, and nothing in them is run."""

from .json_file import read_json
from .safetensors_file import SafetensorsFile, read_safetensors
from .stored import StoredTensor
from .torch_file import TorchFile, read_torch

__all__ = ["SafetensorsFile", "StoredTensor", "TorchFile", "read_json", "read_safetensors", "read_torch"]
