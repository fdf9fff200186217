"""TRL's trainers for SFT and DPO, with checkpoints that are whole or not there."""

from trl import DPOTrainer as TrlDPOTrainer
from trl import SFTTrainer as TrlSFTTrainer

from toolkit.trainers.checkpoints import WholeCheckpoints


class SFTTrainer(WholeCheckpoints, TrlSFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer; see `WholeCheckpoints`."""


class DPOTrainer(WholeCheckpoints, TrlDPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer; see `WholeCheckpoints`."""
