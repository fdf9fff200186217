"""Parameter-efficient RLHF on one GPU: SFT, reward model, PPO and DPO as adapters on one frozen base.

Importing this package turns off the telemetry of huggingface_hub (and so TRL's) and of Gradio
unless the environment already says otherwise; both libraries read their switch at import.
"""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

__version__ = "0.1.0"
