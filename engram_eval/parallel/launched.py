"""Whether there are other processes, without importing torch."""

import os


def launched() -> bool:
    """Tell whether ``torchrun`` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
