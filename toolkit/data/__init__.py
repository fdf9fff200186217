"""Datasets: the row formats, and loading rows in the form that TRL's trainers need."""

from toolkit.data.checks import check_texts
from toolkit.data.convert import KINDS, Conversion, convert_row, convert_rows
from toolkit.data.formats import FORMATS, detect_format
from toolkit.data.loading import load_splits
from toolkit.data.ranking import ranked_to_pairs
from toolkit.data.sources import check_source
from toolkit.data.splits import Splits

__all__ = [
    "FORMATS",
    "KINDS",
    "Conversion",
    "Splits",
    "check_source",
    "check_texts",
    "convert_row",
    "convert_rows",
    "detect_format",
    "load_splits",
    "ranked_to_pairs",
]
