"""What every trainer shares: optimisers, averaged weights, resumable checkpoints, a loss log with a plot."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from engine.world import choose_dtype
from models.errors import WorldError, one_line
from models.weightfile import load_pickle
from training.arguments import new_folder
from training.sharded import gathered, local, part_like

FITTING = "takes weights of this network: name others, or give configs/garden.yaml their sizes"  # advice, after an option's name


def working_dtype(device: torch.device) -> torch.dtype:
    """What is computed in while training: bfloat16 where the device multiplies it itself, else float32, which is then the quicker one.

    Never float16: small gradients would be lost in it.
    """
    return torch.bfloat16 if choose_dtype("auto", device) == torch.bfloat16 else torch.float32


def working_precision(device: torch.device) -> AbstractContextManager:
    """Autocast to `working_dtype`; in float32 nothing is cast."""
    return torch.autocast(device.type, torch.bfloat16) if working_dtype(device) == torch.bfloat16 else nullcontext()


class _InFloat32(TorchFunctionMode):
    """What is asked for as bfloat16 comes as a copy in float32."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return args[0].float().clone() if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))


class Muon(torch.optim.Muon):
    """torch's, which makes its updates orthogonal in bfloat16; here in `working_dtype`.

    On a processor without bfloat16 those few products take several times as long as all the rest of a step does.
    """

    def step(self, closure: Callable | None = None) -> Any:
        device = self.param_groups[0]["params"][0].device
        with nullcontext() if working_dtype(device) == torch.bfloat16 else _InFloat32():
            return super().step(closure)


class MixedOptimizer:
    """Muon for the matrices (convolution kernels flattened to matrices), AdamW for everything else.

    `torch.optim.Muon` takes two-dimensional parameters only, so a kernel is handed to it as a two-dimensional
    parameter over the same memory. ``adamw`` names parameters (by substring) that are matrices but no hidden layers.
    Parameters of the modules ``slow`` learn at ``slowness`` times the rates.

    Of a matrix that is spread over processes (FSDP2) each of them keeps a whole copy and its momentum, and computes the same update:
    what makes an update orthogonal needs all of it.
    """

    def __init__(
        self, model: nn.Module, lr: float, adamw_lr: float, weight_decay: float = 0.01, adamw: tuple[str, ...] = (),
        slow: Sequence[nn.Module] = (), slowness: float = 1.0,
    ) -> None:  # fmt: skip
        self.views: list[tuple[nn.Parameter, nn.Parameter]] = []
        slowed = {id(p) for module in slow for p in module.parameters()}
        matrices: dict[float, list[nn.Parameter]] = {}  # by rate
        others: dict[float, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            rate = slowness if id(parameter) in slowed else 1.0
            sides = (parameter.shape[0], parameter.numel() // parameter.shape[0]) if parameter.ndim >= 2 else (0,)
            if min(sides) >= 8 and not any(part in name for part in adamw):
                view = nn.Parameter(_matrix(parameter.data))
                self.views.append((parameter, view))
                matrices.setdefault(rate, []).append(view)
            else:
                others.setdefault(rate, []).append(parameter)
        self.rates = [list(matrices), list(others)]
        by_rate = [{"params": part} for part in matrices.values()]
        self.muon = Muon(by_rate, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW([{"params": part} for part in others.values()], lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.base = (lr, adamw_lr)

    def step(self, scale: float) -> None:
        """One update with both learning rates multiplied by ``scale``."""
        for parameter, view in self.views:
            view.grad = None if parameter.grad is None else _matrix(parameter.grad)
            if isinstance(parameter, DTensor):  # which something else may have changed, a checkpoint for one
                view.data.copy_(_matrix(parameter.data))
        for optimizer, lr, rates in zip((self.muon, self.adamw), self.base, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * scale * rate
            optimizer.step()
        for parameter, view in self.views:
            parameter.grad, view.grad = None, None
            if isinstance(parameter, DTensor):
                local(parameter.data).copy_(local(part_like(view.data.view(parameter.shape), parameter.data)))
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        load_moments(self.muon, state["muon"])
        load_moments(self.adamw, state["adamw"])


def _matrix(tensor: Tensor) -> Tensor:
    """``tensor`` as a matrix over the same memory; all of it, of one that is spread over processes."""
    full = gathered(tensor)
    return full.view(full.shape[0], -1)


def load_moments(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """What an optimiser's `state_dict` remembers of the gradients; its settings (betas, decay) stay those it was made with."""
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


class AveragedWeights:
    """Exponential moving average of a model's parameters, warmed up so that the first steps do not linger."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [(self.weights[name], p.detach()) for name, p in model.named_parameters()]
        torch._foreach_lerp_([a for a, _ in pairs], [p for _, p in pairs], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            p.copy_(self.weights[name])

    @contextmanager
    def lent_to(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the averaged weights; then its own again."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(own[name])


def starting_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Weights to begin from, and a helper's if there are any: a run's folder or its `last.pt` (averaged), or exported safetensors.

    Raises what torch and safetensors do, and ValueError for a file of something else.
    """
    if path.suffix == ".safetensors":
        return {name: tensor.float() for name, tensor in load_file(path).items()}, None
    state = load_pickle(path / "last.pt" if path.is_dir() else path, mapped=False)
    if not isinstance(state, dict) or not isinstance(state.get("averaged"), dict):
        raise ValueError("it holds no run's averaged weights")
    return state["averaged"], state.get("helper")


def weights_for(option: str, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """`starting_weights` of what the ``option`` of a command names. Raises WorldError where there are none."""
    try:
        return starting_weights(path)
    except Exception as error:  # torch and safetensors name many: no such file, another kind of file, one that would run code
        raise WorldError(f"{option} {one_line(path, 200)}: no weights can be read from it: {one_line(error, 160)}") from None


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path, advice: str) -> None:
    """Give ``module`` exactly the ``weights`` read from ``source``; only buffers may be missing (averaged weights have none).

    Raises WorldError, which ends with ``advice``, for a tensor that is missing, unknown or of another shape.
    """
    own, parameters = module.state_dict(), dict(module.named_parameters())
    strange = [name for name in weights if name not in own]
    missing = [name for name in parameters if name not in weights]
    wrong = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if strange:
        what = f"holds {one_line(strange[0], 80)}, which this network does not have ({len(strange)} such tensors)"
    elif missing:
        what = f"lacks {missing[0]} ({len(missing)} of {len(parameters)} tensors missing)"
    elif wrong:
        what = f"has {wrong[0]} as {list(weights[wrong[0]].shape)}, this network as {list(own[wrong[0]].shape)}"
    else:
        module.load_state_dict(weights, strict=False)
        return
    raise WorldError(f"{one_line(source, 200)} {what}: {advice}")


def without_cudnn_attention(device: torch.device) -> None:
    """On a GPU leave attention to Flash and the others: of cuDNN's, backward passes of tiny shapes have given NaN (before cuDNN 9.15)."""
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def cosine_schedule(progress: float, warmup: float = 0.02, floor: float = 0.02) -> float:
    """Learning-rate factor for ``progress`` in [0, 1]: a linear warm-up, flat for the first half, then a cosine to ``floor``."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    fall = max(0.0, (min(progress, 1.0) - 0.5) / 0.5)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall))


class TrainingRun:
    """A folder with `last.pt` (everything to go on from) and `log.jsonl` (a line per report, plotted to `loss.png`)."""

    def __init__(self, folder: Path, minutes: float, report_every: float = 20.0) -> None:
        self.folder, self.minutes, self.report_every = folder, minutes, report_every
        new_folder(folder)
        self.step, self.seconds = 0, 0.0
        self._mark = self._reported = time.monotonic()
        self._sums: dict[str, float | Tensor] = {}
        self._count = 0

    @property
    def progress(self) -> float:
        """Share of the time budget that is used, in [0, 1]."""
        return min(1.0, self.seconds / (60 * self.minutes))

    def resume(self) -> dict | None:
        """What `save` left in the folder, None if nothing did. Raises WorldError for a `last.pt` that is something else."""
        path = self.folder / "last.pt"
        if not path.exists():
            return None
        try:
            state = load_pickle(path, mapped=False)
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            strange = [part for part in ("model", "optimizer", "averaged") if not isinstance(state.get(part), dict)]
        except Exception as error:  # torch names many: another kind of file, half of one, one that would run code
            raise WorldError(f"{path} cannot be gone on from: {one_line(error, 120)}; move it away, or choose another --out") from None
        if strange:
            raise WorldError(f"{path} is of another trainer, it has no {strange[0]}: move it away, or choose another --out")
        print(f"resumed {path} at step {self.step} after {self.seconds / 60:.1f} min", flush=True)
        return state

    def save(self, state: dict) -> None:
        temporary = self.folder / "last.pt.tmp"
        torch.save({"step": self.step, "seconds": self.seconds, **state}, temporary)
        os.replace(temporary, self.folder / "last.pt")

    def tick(self, losses: dict[str, float | Tensor]) -> bool:
        """Count one step and its losses; True when a report was printed (a good moment to save)."""
        now = time.monotonic()
        self.seconds += now - self._mark
        self._mark = now
        self.step += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value  # read when they are reported: a GPU is not waited for at every step
        self._count += 1
        if now - self._reported < self.report_every:
            return False
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        line = {"step": self.step, "minutes": round(self.seconds / 60, 3), **{k: round(v, 6) for k, v in means.items()}}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        rate = self._count / (now - self._reported)
        numbers = "  ".join(f"{k} {v:.4f}" for k, v in means.items())
        print(f"{100 * self.progress:5.1f}%  step {self.step:6d}  {rate:5.2f}/s  {numbers}", flush=True)
        self._sums, self._count, self._reported = {}, 0, now
        return True

    def exclude_pause(self) -> None:
        """Do not count the time since the last step (evaluation, data) as training time."""
        self._mark = time.monotonic()

    def plot(self) -> None:
        """Draw every logged number over time to `loss.png`; silently skipped without matplotlib, or before the first report."""
        if not (self.folder / "log.jsonl").exists():
            return
        try:
            import matplotlib

            matplotlib.use("Agg")
            import matplotlib.pyplot as plt
        except ImportError:
            return
        lines = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        names = [n for n in lines[-1] if n not in ("step", "minutes")]
        figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False)
        for axis, name in zip(axes[0], names, strict=True):
            axis.plot([x["minutes"] for x in lines if name in x], [x[name] for x in lines if name in x])
            axis.set(title=name, xlabel="minutes")
        figure.tight_layout()
        figure.savefig(self.folder / "loss.png", dpi=80)
        plt.close(figure)


class Trainee:
    """A model in training: its optimiser, its averaged weights, and how it is resumed and saved with its run.

    ``trained`` limits the optimiser to a part of the model; ``helper`` is trained and saved with it and never exported; the modules
    ``slow`` learn at ``slowness`` times the rates.
    ``fresh`` tells whether the run begins here, ``helpless`` whether it does so from weights that came without the helper.
    Raises WorldError for weights that are not of this model, and for a run that cannot be gone on with.
    """

    def __init__(
        self, model: nn.Module, run: TrainingRun, lr: float, adamw_lr: float, decay: float, adamw: tuple[str, ...] = (),
        start_from: Path | None = None, trained: nn.Module | None = None, helper: nn.Module | None = None,
        slow: Sequence[nn.Module] = (), slowness: float = 1.0,
    ) -> None:  # fmt: skip
        self.model, self.run, self.helper = model, run, helper
        without_cudnn_attention(next(model.parameters()).device)
        state = run.resume()
        self.fresh = state is None
        helped, source = None, start_from
        if state is not None:
            source = run.folder / "last.pt"
            load_weights(model, state["model"], source, "it is a run of another network; choose another --out")
            helped = state.get("helper")
        elif start_from is not None:
            weights, helped = weights_for("--start-from", start_from)
            load_weights(model, weights, start_from, f"--start-from {FITTING}")
        if helper is not None and helped is not None:
            anew = "its helper is another training's; to begin without one, --start-from what training.export makes of it, in another --out"
            load_weights(helper, helped, source, anew)
        self.helpless = self.fresh and start_from is not None and helper is not None and helped is None
        trained = trained or model
        whole = trained if helper is None else nn.ModuleList([trained, helper])
        self.optimizer = MixedOptimizer(whole, lr, adamw_lr, adamw=adamw, slow=slow, slowness=slowness)
        self.averaged = AveragedWeights(model, decay)
        if state is not None:
            device = next(model.parameters()).device
            try:
                self.optimizer.load_state_dict(state["optimizer"])
            except (ValueError, LookupError, TypeError):  # other groups of parameters: some were slow and are not; or another trainer's
                raise WorldError(f"{run.folder} was begun with other rates: choose another --out, or --start-from it") from None
            self.averaged.weights = {name: weight.to(device) for name, weight in state["averaged"].items()}

    def step(self) -> None:
        """Clip the gradients that are there, and update weights and averages at the schedule's learning rate.

        Raises SystemExit, in one line and before any weight has changed, where their norm is no finite number.
        """
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        if not math.isfinite(norm):
            raise SystemExit(
                f"{self.run.folder}: the gradient's norm is {norm} at step {self.run.step}, nothing more is learned or saved; "
                "the same command goes on from the last.pt before, if there is one: with a lower --lr if this comes again"
            )
        self.optimizer.step(cosine_schedule(self.run.progress))
        self.averaged.update(self.model, self.run.step)

    def save(self) -> None:
        helper = {} if self.helper is None else {"helper": self.helper.state_dict()}
        optimizer, averaged = self.optimizer.state_dict(), self.averaged.weights
        self.run.save({"model": self.model.state_dict(), "optimizer": optimizer, "averaged": averaged, **helper})
