"""Actions in, frames out. What is named here is all that `game` may use."""

from engine.actions import Action, ActionSpace
from engine.bench import BenchReport, benchmark
from engine.config import WorldConfig, list_worlds, load_config
from engine.inspect import Comparison, FileReport, compare_weights, inspect_weights, weight_files
from engine.picture import load_picture
from engine.session import Session
from engine.world import World
from models.errors import WorldError

__all__ = [
    "Action",
    "ActionSpace",
    "BenchReport",
    "Comparison",
    "FileReport",
    "Session",
    "World",
    "WorldConfig",
    "WorldError",
    "benchmark",
    "compare_weights",
    "inspect_weights",
    "list_worlds",
    "load_config",
    "load_picture",
    "weight_files",
]
