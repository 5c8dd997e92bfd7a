"""The checks of `tests.gpu_table`: each takes a `Place` and gives a table of what it found."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEAR = 0.25  # relative error that bfloat16 may have against float32, after blocks of random weights; a wrong kernel has about 1


@dataclass(frozen=True)
class Place:
    """What is measured and where. ``blocks``: as many at most in each row."""

    world: str
    device: str
    dtype: str
    blocks: int = 1000

    def words(self, blocks: int) -> list[str]:
        words = [
            "--random",
            "--world",
            self.world,
            "--device",
            self.device,
            "--dtype",
            self.dtype,
            "--blocks",
            str(min(blocks, self.blocks)),
        ]
        return [*words, "--json"]


def exactness(place: Place) -> dict[str, Any]:
    """Blocks up to a full window and two more, latents and pictures, against float32 that is not compiled: same weights and noise.

    Relative errors in the place's dtype, not compiled and compiled (`compiled` begins when the window is full), and whether compiling adds
    nothing that the dtype does not take anyway. On a GPU the last two blocks are graphs, but not those in float32; whether they give the
    same bits as passes that are not.
    """
    import torch

    from engine import Action, World, compile_world
    from engine.session import Session

    graphed: list[bool] = []

    def played(world: World) -> list[tuple[torch.Tensor, torch.Tensor]]:
        session, model = Session(world, 0, world.random_start(), rewind_mb=0), world.config.model
        made = []
        for _ in range(-(-model.local_attn_size // model.num_frame_per_block) + 2):
            latents = session.imagine_only(Action(frozenset("w")))
            made.append((latents.float().cpu(), torch.from_numpy(session.develop_only(latents)).float()))
        graphed.append(session.graphed)
        return made

    def errors(ours: list[tuple[torch.Tensor, torch.Tensor]], exact: list[tuple[torch.Tensor, torch.Tensor]], part: int) -> list[float]:
        pairs = [(mine[part], theirs[part]) for mine, theirs in zip(ours, exact, strict=True)]
        return [float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs]

    plain = _world(place, "float32", window=6)
    plain.dit.capture = None
    exact = played(plain)
    world = _world(place, place.dtype, window=6)
    found: dict[str, Any] = {}
    for name in ("eager", "compiled"):
        if name == "compiled":
            world.adopt(compile_world(world))
        made, capture = played(world), world.dit.capture
        found |= {f"{name}_latents": errors(made, exact, 0), f"{name}_pictures": errors(made, exact, 1)}
        if capture is not None:
            world.dit.capture = None
            same = [torch.equal(one, other) for one, other in zip(sum(made, ()), sum(played(world), ()), strict=True)]
            found[f"{name}_graphs_same_bits"], world.dit.capture = all(same) and graphed[-2:] == [True, False], capture
    found["within"] = within(found)
    return found


def within(found: dict[str, list[float]]) -> bool:
    """Whether bfloat16 is near float32 at all, and compiling adds no more than half of what it takes. Not a number is not near."""
    for part in ("latents", "pictures"):
        eager, compiled = found[f"eager_{part}"], found[f"compiled_{part}"]
        if not all(error <= NEAR for error in eager) or not all(error <= 1.5 * max(eager) for error in compiled):
            return False
    return True


def _world(place: Place, dtype: str, window: int | None = None) -> Any:
    """Untrained, with ``window`` latents in view where the model has more; not warmed up by playing, but with exact kernels."""
    from engine import World, load_config

    config = load_config(place.world)
    if window is not None and window < config.model.local_attn_size:
        config = load_config(place.world, {"model.local_attn_size": window})
    world = World.untrained(config, place.device, dtype)
    world.warm_up(play=False)
    return world


def host_reads(place: Place) -> dict[str, Any]:
    """Whether a block waits for the device, from the action to bytes that are ready to be copied: compiled, the window full."""
    import torch

    from engine import Action, compile_world
    from engine.frames import to_bytes
    from engine.session import Session
    from engine.stopwatch import Stopwatch

    world = _world(place, place.dtype, window=6)
    world.adopt(compile_world(world))
    session = Session(world, 0, world.random_start(), rewind_mb=0)

    @torch.inference_mode()
    def block() -> None:
        latents = session.imagine_only(Action(frozenset("w")))
        to_bytes(session._decode(latents, Stopwatch()))
        session._decoder.commit()

    for _ in range(4):
        block()
    if world.device.type != "cuda":
        return {"synchronisations": "not known: no GPU"}
    torch.cuda.set_sync_debug_mode("error")
    try:
        block()
        return {"synchronisations": 0}
    except RuntimeError as error:
        return {"synchronisations": str(error)[:200]}
    finally:
        torch.cuda.set_sync_debug_mode("default")


def kernels(place: Place) -> dict[str, Any]:
    """The kernels that take most of a block's time, in milliseconds, the window full; what every choice of attention comes to then."""
    from torch.autograd import DeviceType
    from torch.profiler import profile

    from engine import Action, WorldError
    from engine.attention import KERNELS, choose_attention
    from engine.device import synchronize
    from engine.session import Session

    world = _world(place, place.dtype, window=6)
    session = Session(world, 0, world.random_start(), rewind_mb=0)
    for _ in range(4):
        session.step(Action())
    with profile() as seen:
        session.step(Action())
        synchronize(world.device)
    on_gpu = world.device.type == "cuda"
    time_of = (lambda event: event.self_device_time_total) if on_gpu else (lambda event: event.self_cpu_time_total)
    events = [event for event in seen.key_averages() if not on_gpu or event.device_type != DeviceType.CPU]  # whose calls carry it once more
    slowest = sorted(events, key=time_of, reverse=True)[:15]
    found: dict[str, Any] = {"kernels_ms": {event.key[:90]: round(time_of(event) / 1000, 3) for event in slowest}}
    found["attention"] = {"auto": str(world.attention), **world.describe()["attention of"]}
    for name in KERNELS:
        try:
            choose_attention(name, world.device, world.dtype, world.config)
        except WorldError as refused:
            found[f"attention {name}"] = str(refused)
            continue
        session._cache.graphs = None  # they hold the kernels they were made with
        for _ in range(4):  # the first one makes plans, the second one graphs
            begun = time.perf_counter()
            session.imagine_only(Action())
            synchronize(world.device)
            spent = 1000 * (time.perf_counter() - begun)
        found[f"attention {name}"] = {"transformer_ms": spent, **world.describe()["attention of"]}
    choose_attention("auto", world.device, world.dtype, world.config)
    return found


def decoder(place: Place) -> dict[str, Any]:
    """Milliseconds to decode a block as it is and compiled, how long it took to be compiled, layers included, what an earlier row has
    left on disk taken from there, and how far the pictures are apart.
    """
    import torch

    from engine import World, compile_world
    from engine.device import synchronize

    world = World.untrained(place.world, place.device, place.dtype)
    world.warm_up()
    generator = torch.Generator().manual_seed(0)
    shape = world.random_start().latents[:, :, :3].shape
    blocks = [torch.randn(shape, generator=generator).to(world.decode_device) for _ in range(8)]

    def play() -> tuple[float, torch.Tensor]:
        cache, spent = world.decoder.new_decoder_cache(), []
        for latents in blocks:
            synchronize(world.decode_device)
            begun = time.perf_counter()
            with torch.inference_mode():
                frames = world.decoder.decode_block(latents, cache)
            synchronize(world.decode_device)
            spent.append(1000 * (time.perf_counter() - begun))
        return sorted(spent[2:])[3], frames.float()

    plain_ms, plain = play()
    begun = time.perf_counter()
    world.adopt(compile_world(world, decoder=True))
    compiler = time.perf_counter() - begun
    compiled_ms, compiled = play()
    error = float((compiled - plain).norm() / plain.norm())
    return {"plain_ms": plain_ms, "compiled_ms": compiled_ms, "layers_and_decoder_from_disk_s": compiler, "relative_error": error}


def transfer(place: Place) -> dict[str, Any]:
    """Milliseconds to bring a block's uint8 pictures to the host: as a session does (pinned, from a GPU) and by a plain copy."""
    import torch

    from engine import load_config
    from engine.device import synchronize
    from engine.frames import Arriving

    config, device = load_config(place.world), torch.device(place.device)
    pictures = torch.randint(0, 256, (config.block_frames[1], config.height, config.width, 3), dtype=torch.uint8, device=device)
    found: dict[str, Any] = {}
    for name, copy in (("session", lambda pictures: Arriving(pictures).wait()), ("plain", lambda pictures: pictures.to("cpu", copy=True))):
        spent = []
        for _ in range(12):
            synchronize(device)
            begun = time.perf_counter()
            host = copy(pictures)
            spent.append(1000 * (time.perf_counter() - begun))
        found[f"{name}_ms"] = sorted(spent[2:])[5]
        found[f"{name}_pinned"] = host.is_pinned()
        found[f"{name}_same"] = bool((host == pictures.cpu()).all())
    return found


def layouts(place: Place) -> dict[str, Any]:
    """Milliseconds to decode a block with causal convolutions over stacked frames, and over volumes (`models.vae_layers.VOLUMES`)."""
    import torch

    import models.vae_layers
    from engine import World
    from engine.device import synchronize

    found: dict[str, Any] = {}
    kept = dict(models.vae_layers.VOLUMES)
    try:
        for name, kinds in (("stacked", ()), ("volumes", (torch.bfloat16, torch.float16, torch.float32))):
            models.vae_layers.VOLUMES[place.device.split(":")[0]] = kinds
            world = World.untrained(place.world, place.device, place.dtype)
            latents, cache, spent = world.random_start().latents[:, :, :3], world.vae.new_decoder_cache(), []
            for _ in range(8):
                synchronize(world.device)
                begun = time.perf_counter()
                with torch.inference_mode():
                    world.vae.decode_block(latents, cache)
                synchronize(world.device)
                spent.append(1000 * (time.perf_counter() - begun))
            found[f"{name}_ms"] = sorted(spent[2:])[3]
    finally:
        models.vae_layers.VOLUMES.clear()
        models.vae_layers.VOLUMES.update(kept)
    return found


def recordings(place: Place) -> dict[str, Any]:
    """How far from the recordings that travel with the project this device is in float32: relative errors, the largest of each part.

    The denoiser plays as a session does, over the ring's end: on a GPU the last block's passes are graphs. `within`: all of them below
    1e-4, as `tests/engine/test_recordings.py` asks of a CPU.
    """
    from functools import partial

    import torch

    from engine.clock import BlockClock
    from engine.conditioning import Windows
    from engine.exact import make_exact
    from engine.sampler import BlockSampler
    from models.graphs import CudaCapture
    from tests.models.dit_recordings import build, start_cache, windows
    from tests.recordings import FIXTURES, RecordedNoise, read_recording, recorded_taehv, recorded_vae, relative_error

    device = torch.device(place.device)
    make_exact(device)
    dit_file, vae_file, taehv_file = (
        read_recording(FIXTURES / f"{name}.safetensors").to(device) for name in ("dit_small", "vae_dim8", "taehv_small")
    )
    dit = build(dit_file).eval()
    dit.fuse()
    if device.type == "cuda":
        dit.capture = partial(CudaCapture, device)
    sampler, cache, clock = BlockSampler(dit, dit_file.config["denoising_step_list"], 5.0), start_cache(dit, dit_file), BlockClock()
    found: dict[str, Any] = {"denoiser": []}
    with torch.inference_mode():
        for _ in range(dit_file["in.noise"].shape[2] // clock.n):
            own = slice(clock.start, clock.start + clock.n)
            condition = dit_file["in.cond_concat"][:, :, own]
            rows = Windows(*(windows(dit_file[f"out.{name}_cond"], range(own.start, own.stop)) for name in ("keyboard", "mouse")))
            x0 = condition
            for step, x0 in enumerate(sampler.denoise(clock, cache, condition, rows, RecordedNoise(dit_file))):
                found["denoiser"].append(relative_error(x0, dit_file["out.x0_steps"][clock.block, step]))
            sampler.commit(clock, cache, condition, rows, x0)
            clock = clock.next()
        found |= {"denoiser": max(found["denoiser"]), "graphs": cache.graphed}
        vae = recorded_vae(vae_file)
        vae.lay_out()
        latents, memory = vae_file["out.video_latent"], vae.new_decoder_cache()
        found["encoder"] = relative_error(vae.encode(vae_file["in.video"]), latents)
        streamed = torch.cat([vae.decode_block(part, memory) for part in latents.split(clock.n, dim=2)], dim=2)
        found["decoder"] = relative_error(streamed, vae_file["out.video_decoded"].clamp(-1, 1))
        tiny = recorded_taehv(taehv_file)
        frames = tiny.pixels(taehv_file["in.latents"].transpose(1, 2), tiny.new_decoder_cache())
        found["tiny decoder"] = relative_error(frames[None], taehv_file["out.frames_untrimmed"])
    found["within"] = all(found[part] < 1e-4 for part in ("denoiser", "encoder", "decoder", "tiny decoder"))
    return found


def replay(place: Place) -> dict[str, Any]:
    """A session of the garden (whose weights are here) on this device, and its file replayed in another process: every frame's hash."""
    script, blocks = "w*2 w+l*2 idle*3 j*2 a+i*3", min(12, place.blocks)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "walk.session.jsonl")
        place_words = ["--device", place.device, "--dtype", place.dtype]
        play = ["play.py", "--headless", "--script", script, "--blocks", str(blocks), "--session", file, *place_words]
        verify = ["-c", "import sys; from game.cli import main; sys.exit(main(sys.argv[1:]))", "replay", file, "--verify", *place_words]
        for words in (play, verify):
            done = subprocess.run([sys.executable, *words], cwd=Path(__file__).parents[1], capture_output=True, text=True)
            if done.returncode:
                return {"error": (done.stderr.strip().splitlines() or ["no words"])[-1][:300]}
    return {"replayed": done.stdout.strip().splitlines()[-1].split(": ", 1)[-1]}


CHECKS = {
    "replay": replay,
    "recordings": recordings,
    "exactness": exactness,
    "host_reads": host_reads,
    "kernels": kernels,
    "decoder": decoder,
    "transfer": transfer,
    "layouts": layouts,
}


def tried(check: str, place: Place) -> dict[str, Any]:
    """What the check found; an error of one is no reason to leave the others out."""
    import torch

    try:
        return CHECKS[check](place)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        if place.device.startswith("cuda"):
            with contextlib.suppress(Exception):  # after an error of the device's everything fails
                torch.cuda.empty_cache()
