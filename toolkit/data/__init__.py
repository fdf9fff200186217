"""Datasets: what rows may look like, and loading them as TRL's trainers want them."""

from toolkit.data.formats import FORMATS, convert_row, detect_format
from toolkit.data.loading import check_source, load_splits
from toolkit.data.ranking import ranked_to_pairs
from toolkit.data.rows import Converted, convert_rows

__all__ = [
    "FORMATS",
    "Converted",
    "check_source",
    "convert_row",
    "convert_rows",
    "detect_format",
    "load_splits",
    "ranked_to_pairs",
]
