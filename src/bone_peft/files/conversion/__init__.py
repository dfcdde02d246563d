"""One adapter, other formats: exact wherever it can be, and with the error said where it cannot."""

from .convert import Converted, convert
from .live import adapter_of

__all__ = ["Converted", "adapter_of", "convert"]
