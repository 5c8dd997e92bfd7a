"""Actions in, frames out. What is named here is all that `game` may use."""

from engine.actions import Action, ActionSpace
from engine.bench import BenchReport, benchmark
from engine.config import WorldConfig, list_worlds, load_config
from engine.history import REWIND_MB
from engine.picture import load_picture
from engine.session import Session
from engine.snapshot import Snapshot
from engine.world import World
from models.errors import WorldError

__all__ = [
    "REWIND_MB",
    "Action",
    "ActionSpace",
    "BenchReport",
    "Session",
    "Snapshot",
    "World",
    "WorldConfig",
    "WorldError",
    "benchmark",
    "list_worlds",
    "load_config",
    "load_picture",
]
