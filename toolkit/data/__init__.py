"""Datasets: what rows may look like, and loading them as TRL's trainers want them."""

from toolkit.data.checks import check_texts
from toolkit.data.formats import FORMATS, KINDS, convert_row, detect_format
from toolkit.data.loading import load_splits
from toolkit.data.ranking import ranked_to_pairs
from toolkit.data.rows import Converted, convert_rows
from toolkit.data.sources import check_source
from toolkit.data.tables import Splits

__all__ = [
    "FORMATS",
    "KINDS",
    "Converted",
    "Splits",
    "check_source",
    "check_texts",
    "convert_row",
    "convert_rows",
    "detect_format",
    "load_splits",
    "ranked_to_pairs",
]
