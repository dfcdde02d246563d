"""What an adapter will cost, before anything is loaded: parameters, files, optimizer, memory."""

from .chart import write_chart
from .estimate import Cost, Estimate, estimate
from .models import KNOWN, config_of
from .recommended import Recommended, recommended

__all__ = ["KNOWN", "Cost", "Estimate", "Recommended", "config_of", "estimate", "recommended", "write_chart"]
