"""One process or many: the same training. Under `torchrun` weights, averages and optimiser states are sharded (FSDP2).

Every process draws and computes its own samples of the batch; gradients are averaged, so that any number of processes takes the
step that one would take. Without torchrun no process group is made and no socket opened.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from models.dit import DiT
from models.errors import WorldError, one_line
from training.common import without_cudnn_attention


@dataclass(frozen=True)
class Workers:
    """This process among ``count``; ``mesh`` is None where it is the only one."""

    rank: int
    count: int
    device: torch.device
    mesh: DeviceMesh | None = None

    @classmethod
    def start(cls, device: str) -> Workers:
        """Join the others where `torchrun` started this process (it sets RANK and WORLD_SIZE). Raises WorldError for no such device."""
        try:
            place = torch.device(device)
            count = int(os.environ.get("WORLD_SIZE", "1"))
            if "RANK" in os.environ and count > 1 and place.type == "cuda":
                place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(place)
            torch.empty(1, device=place).tolist()  # reading it back tells a real one from "meta"
            without_cudnn_attention(place)
        except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
            raise WorldError(f"there is no device {one_line(device, 80)!r} for training here: {one_line(error, 120)}") from None
        if "RANK" not in os.environ or count == 1:
            return cls(0, 1, place)
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        return cls(dist.get_rank(), count, place, init_device_mesh(place.type, (count,)))

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def samples(self, batch: int) -> range:
        """The places in the batch that are this process's. Raises WorldError for a batch that cannot be shared out equally."""
        if batch % self.count:
            raise WorldError(f"a batch of {batch} cannot be shared by {self.count} processes: make it a multiple")
        share = batch // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def shard(self, dit: DiT) -> DiT:
        """``dit`` spread over the processes, layer by layer, in place; itself where there is but one."""
        dit.to(self.device)
        if self.mesh is None:
            return dit
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # of outputs that are views: nobody writes into them
        for layer in dit.blocks:
            if layer.cross_attn is not None:  # its keys of the image are asked for outside the layer's forward
                fully_shard(layer.cross_attn, mesh=self.mesh, reshard_after_forward=True)
                register_fsdp_forward_method(layer.cross_attn, "keys_values")
            fully_shard(layer, mesh=self.mesh, reshard_after_forward=True)
        fully_shard(dit, mesh=self.mesh, reshard_after_forward=True)  # the root too: kept, it would be stale after the optimiser's step
        register_fsdp_forward_method(dit, "forward_parallel")
        register_fsdp_forward_method(dit, "precompute_context")
        return dit

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """The mean over all processes of each number."""
        if not values:
            return {}
        together = torch.stack([value.detach().float().cpu().to(self.device) for value in values.values()])
        if self.mesh is not None:
            dist.all_reduce(together)
            together /= self.count
        return dict(zip(values, together.tolist(), strict=True))

    def agree(self, flag: bool) -> bool:
        """Whether any process says so: they must stop and save together."""
        return self.mean({"flag": torch.tensor(float(flag))})["flag"] > 0

    def finish(self) -> None:
        """Leave the others when all have done their work; never after an error, since those who still work would not come."""
        if self.mesh is not None:
            dist.barrier()
            dist.destroy_process_group()
