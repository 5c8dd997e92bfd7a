"""Actions in, frames out. What is named here is all that `game` may use."""

from engine.actions import Action, ActionSpace
from engine.bench import BenchReport, benchmark
from engine.config import WorldConfig, list_worlds, load_config
from engine.exact import NOISE, fingerprint, pin_threads, processor, settings
from engine.picture import load_picture
from engine.session import Session
from engine.world import World
from models.errors import WorldError

__all__ = [
    "NOISE",
    "Action",
    "ActionSpace",
    "BenchReport",
    "Session",
    "World",
    "WorldConfig",
    "WorldError",
    "benchmark",
    "fingerprint",
    "list_worlds",
    "load_config",
    "load_picture",
    "pin_threads",
    "processor",
    "settings",
]
