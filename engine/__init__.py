"""Actions in, frames out. What is named here is all that `game` may use."""

from engine.actions import IDLE, Action, ActionSpace
from engine.baseline import Baseline
from engine.bench import SETTLE, BenchReport, benchmark, ceiling_of, compare, stage_time
from engine.clip import check_clip, clip_limit
from engine.clock import BlockClock
from engine.compiler import Compiled, compile_world
from engine.config import WorldConfig, load_config
from engine.exact import NOISE, fingerprint, pin_threads, processor, settings, threads_in_use
from engine.history import REWIND_MB
from engine.inspect import Comparison, FileReport, compare_weights, inspect_weights, weight_files
from engine.memory import free_bytes, session_bytes, weights_bytes
from engine.overlap import Overlap, share_threads
from engine.picture import fit_frame, fit_picture, load_picture
from engine.session import Ready, Session
from engine.snapshot import Snapshot
from engine.world import World
from engine.worldfile import list_worlds
from models.errors import WorldError

__all__ = [
    "IDLE",
    "NOISE",
    "REWIND_MB",
    "SETTLE",
    "Action",
    "ActionSpace",
    "Baseline",
    "BenchReport",
    "BlockClock",
    "Comparison",
    "Compiled",
    "FileReport",
    "Overlap",
    "Ready",
    "Session",
    "Snapshot",
    "World",
    "WorldConfig",
    "WorldError",
    "benchmark",
    "ceiling_of",
    "check_clip",
    "clip_limit",
    "compare",
    "compare_weights",
    "compile_world",
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
    "share_threads",
    "stage_time",
    "threads_in_use",
    "weight_files",
    "weights_bytes",
]
