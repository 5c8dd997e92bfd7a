"""What a person sees and touches: window, input, pictures on disk. Uses `engine`, never torch."""

import os

__version__ = "0.1.0"

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # before anyone imports pygame: its greeting is not ours
