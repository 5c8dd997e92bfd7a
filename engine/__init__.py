"""Actions in, frames out. What is named here is all that `game` may use."""

from engine.actions import IDLE, Action, ActionSpace
from engine.bench import BenchReport, benchmark
from engine.clip import check_clip, clip_limit
from engine.config import WorldConfig, load_config
from engine.exact import NOISE, fingerprint, pin_threads, processor, settings
from engine.history import REWIND_MB
from engine.inspect import Comparison, FileReport, compare_weights, inspect_weights, weight_files
from engine.memory import free_bytes, session_bytes
from engine.picture import fit_frame, fit_picture, load_picture
from engine.session import Session
from engine.snapshot import Snapshot
from engine.world import World
from engine.worldfile import list_worlds
from models.errors import WorldError

__all__ = [
    "IDLE",
    "NOISE",
    "REWIND_MB",
    "Action",
    "ActionSpace",
    "BenchReport",
    "Comparison",
    "FileReport",
    "Session",
    "Snapshot",
    "World",
    "WorldConfig",
    "WorldError",
    "benchmark",
    "check_clip",
    "clip_limit",
    "compare_weights",
    "fingerprint",
    "fit_frame",
    "fit_picture",
    "free_bytes",
    "inspect_weights",
    "list_worlds",
    "load_config",
    "load_picture",
    "pin_threads",
    "processor",
    "session_bytes",
    "settings",
    "weight_files",
]
