"""Parameter-efficient RLHF on one GPU: SFT, reward model, PPO and DPO as adapters on one frozen base.

Importing this package turns off the telemetry of huggingface_hub (and so TRL's) and of Gradio
unless the environment already says otherwise; both libraries read their switch at import.
"""

import logging
import os
import warnings

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

# Library noise that a user can do nothing about: bitsandbytes tells at import that an optional CPU
# kernel is absent, transformers warns of coming names of options that TRL's configs still use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
for _option in ("`gradient_checkpointing", "`is_gradient_checkpointing"):
    warnings.filterwarnings("ignore", message=_option, category=FutureWarning)

__version__ = "0.1.0"
