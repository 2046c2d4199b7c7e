"""AdamW on float32 master weights, with a learning rate per role.

bf16 has 8 bits of precision: an update of 1e-5 to a weight of 1.0 is lost, every time. So the optimizer works on
float32 copies, gradients are summed over micro-batches in float32, and the model's own weights are rounded from them.
"""

import math
from collections.abc import Iterator
from itertools import groupby

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from gendistill.distill.accumulation import accumulate
from gendistill.distill.replicas import Replicas
from gendistill.distributed import processes
from gendistill.errors import UserError
from gendistill.models.modeling import describe
from gendistill.recipe.stage import Stage

BETAS = (0.9, 0.95)  # 0.95, a mean over some 20 steps, as usual for language models: stages are short


class MasterOptimizer:
    """AdamW over the trainable parameters of a float32 model, which is rounded to `dtype` here for the arithmetic.

    Where nothing is rounded (dtype float32, or a parameter that stays in it) a parameter is its own master. So is one
    that FSDP shards: FSDP rounds what it gathers. Gradients of what it leaves whole on every process are summed here.
    Where all processes have whole models, a master is this process's rows of a parameter, whatever the precision.

    Args:
        replicas: the exchange between processes with whole models; None if there is one process, or layers are sharded.

    Attributes:
        masters: the float32 weights by name.
        sums: of each parameter's gradients over micro-batches, in float32, by name.
        roles: those that train, in the order of `step`'s ratios.
    """

    def __init__(self, model: nn.Module, stage: Stage, dtype: torch.dtype, replicas: Replicas | None = None):
        self.model, self.clip, self.replicas = model, stage.gradient_clip, replicas
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise UserError("nothing trains in this stage; name at least one role that the student has under train")
        rounded = {
            name: p
            for name, p in model.named_parameters()
            if dtype != torch.float32 and not describe(name).stays_float32 and not isinstance(p, DTensor)
        }
        self.masters = {name: self._master(p, name in rounded) for name, p in self.parameters.items()}
        for parameter in rounded.values():  # frozen ones too: the arithmetic is in `dtype` throughout
            parameter.data = parameter.data.to(dtype)
        self.roles: list[str] = sorted({describe(name).role for name in self.masters})
        self.whole = [m for m in self.masters.values() if not self._is_sharded(m)]
        # Where each master's squares are summed: roles of sharded ones first, then roles of whole ones.
        slots = [
            self.roles.index(describe(name).role) + (0 if self._is_sharded(m) else len(self.roles))
            for name, m in self.masters.items()
        ]
        # Of a sharded master, each with the same squares: hosts may have replicas of each other's shards.
        self.copies = max((_copies(m) for m in self.masters.values() if isinstance(m, DTensor)), default=1)
        self._slots = torch.tensor(slots, device=next(iter(self.masters.values())).device)
        self.peaks, groups = zip(*self._groups(stage), strict=True)
        self.adamw = _adamw(stage.optimizer, list(groups), self.peaks[0])
        self.rounded = [name for name in self.parameters if name in rounded]
        for master in self.masters.values():
            master.grad = torch.zeros_like(master)
        self.sums = {name: self._sum(name) for name in self.masters}

    def _master(self, parameter: nn.Parameter, is_rounded: bool) -> torch.Tensor:
        if self.replicas is not None:
            return self.replicas.own_rows(parameter.detach()).clone().requires_grad_()
        return parameter.detach().clone().requires_grad_() if is_rounded else parameter

    def _sum(self, name: str) -> torch.Tensor:
        """Zeros to which a parameter's gradients are added; where it can be, the place where autograd adds them."""
        if self.replicas is None:
            return self.masters[name].grad
        parameter = self.parameters[name]
        if name in self.rounded:
            return torch.zeros_like(parameter, dtype=torch.float32)
        parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    def _is_sharded(self, master: torch.Tensor) -> bool:
        """Whether each process has a part of it."""
        return self.replicas is not None or isinstance(master, DTensor)

    def _groups(self, stage: Stage) -> Iterator[tuple[float, dict]]:
        """Peak learning rate and parameters of each group: alike in rate, in decay, and in being sharded."""

        def key(item: tuple[str, torch.Tensor]) -> tuple[float, bool, bool]:
            name, master = item
            return stage.peak_learning_rate(describe(name).role), _decays(name, master), isinstance(master, DTensor)

        # groupby takes neighbours together, so what is alike must stand together first.
        for (peak, decays, _), members in groupby(sorted(self.masters.items(), key=key), key=key):
            weight_decay = stage.weight_decay if decays else 0.0
            yield peak, {"params": [master for _, master in members], "weight_decay": weight_decay}

    def zero_gradients(self) -> None:
        """In place: CUDA graphs add to the same tensors at every replay."""
        torch._foreach_zero_([_local(gradients) for gradients in self.sums.values()])

    def collect_gradients(self) -> None:
        """After each micro-batch: adds the model's gradients to the sums and frees them."""
        # Of what is not rounded, autograd adds them where they belong already.
        rounded = [(self.sums[name], self.parameters[name]) for name in self.rounded]
        collected = [(total, parameter) for total, parameter in rounded if parameter.grad is not None]
        with torch.no_grad():
            accumulate((total, parameter.grad) for total, parameter in collected)
        for _, parameter in collected:
            parameter.grad = None  # or the next micro-batch would add to a bf16 sum

    @torch.no_grad()
    def step(self, learning_rate_share: float) -> torch.Tensor:
        """Clips, updates the masters and rounds them into the model.

        Returns:
            [1 + roles], without waiting for the device: the gradient norm before clipping, and each role's
            update-to-weight ratio, ||change|| / ||weights||.
        """
        self._average_gradients()
        masters = [_local(master) for master in self.masters.values()]
        gradients = [_local(master.grad) for master in self.masters.values()]
        norm = self._squares(gradients).sum().sqrt()  # over all roles and processes
        # No `if` on the norm: the host would wait for it.
        torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].dtype))
        self._set_learning_rate(learning_rate_share)
        before = [master.clone() for master in masters]  # a second copy for a moment: `plan` counts it
        self.adamw.step()
        change = self._squares(torch._foreach_sub(masters, before))
        ratios = (change / self._squares(before)).sqrt()
        self.zero_gradients()
        self._publish()
        return torch.cat([norm[None], ratios])

    def _average_gradients(self) -> None:
        """Means over processes, as FSDP takes them of what it shards; the loss is scaled for that."""
        if self.replicas is not None:
            self.replicas.mean_of_rows(list(self.sums.values()), [master.grad for master in self.masters.values()])
        elif processes() > 1:
            for master in self.whole:
                dist.all_reduce(master.grad)
                master.grad /= processes()

    def _squares(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """[roles], float64: sums of squares of tensors that go with the masters, over all processes."""
        squares = torch.stack(torch._foreach_norm(tensors)).double().square()  # [masters]
        totals = squares.new_zeros(2 * len(self.roles)).index_add_(0, self._slots, squares)
        sharded, whole = totals.chunk(2)  # [roles] each; what is whole has the same sum on every process
        if processes() > 1:
            dist.all_reduce(sharded)
            sharded /= self.copies
        return sharded + whole

    def _set_learning_rate(self, share: float) -> None:
        for group, peak in zip(self.adamw.param_groups, self.peaks, strict=True):
            if isinstance(group["lr"], torch.Tensor):  # torchao's
                group["lr"].fill_(peak * share)
            else:
                group["lr"] = peak * share

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's weights by name, the trained ones in float32, put together from all processes."""
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if name not in self.masters}
        trained = {name: self._of_all(name, master.detach()) for name, master in self.masters.items()}
        # In the model's order; each is gathered by itself, by all processes.
        named = {name: frozen.get(name, trained.get(name)) for name, _ in self.model.named_parameters()}
        return {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in named.items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Masters and AdamW's state by name, none of them copied."""
        state = {f"master.{name}": self._of_all(name, master.detach()) for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self.adamw.state[master].items():
                state |= {f"{key}.{name}{part}": self._of_all(name, tensor) for part, tensor in _plain(value)}
        return state

    def _of_all(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A master, or its state, as a part of all processes' where it is one: so a checkpoint fits any number."""
        has_rows = tensor.shape == self.masters[name].shape  # unlike AdamW's count of steps
        if self.replicas is None or not has_rows:
            return tensor
        return self.replicas.as_sharded(tensor, self.parameters[name])

    def load(self, read) -> None:
        """Calls read(state_dict), which is to overwrite the tensors in place, and takes over what it wrote."""
        self._set_learning_rate(0.0)
        self.adamw.step()  # with gradients of zero: makes the state and changes nothing
        read(self.state_dict())
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        """The only place where float32 becomes `dtype`."""
        if self.replicas is not None:
            self.replicas.gather_rows(list(self.masters.values()), list(self.parameters.values()))
            return
        for name in self.rounded:
            self.parameters[name].copy_(self.masters[name])


def _adamw(kind: str, groups: list[dict], learning_rate: float) -> torch.optim.Optimizer:
    if kind == "adamw":
        cuda = _local(groups[0]["params"][0]).is_cuda
        return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=cuda)
    if kind != "adamw_8bit":
        raise ValueError(f"unknown optimizer '{kind}'; known: adamw, adamw_8bit")
    if processes() > 1:
        raise UserError("optimizer: adamw_8bit runs in one process only; take adamw, whose state is sharded")
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            f'optimizer: adamw_8bit needs torchao, which cannot be imported ({error}): pip install "gendistill[lowmem]"'
        ) from None
    return AdamW8bit(groups, lr=learning_rate, betas=BETAS)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copies(tensor: DTensor) -> int:
    """How many processes have the same part of it."""
    replicated = [dim for dim, placement in enumerate(tensor.placements) if placement.is_replicate()]
    return math.prod(tensor.device_mesh.size(dim) for dim in replicated)


def _plain(tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The tensors behind one that is quantised, with their names; an ordinary one is its own."""
    if hasattr(tensor, "__tensor_flatten__") and not isinstance(tensor, DTensor):
        return [(f".{name}", getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0]]
    return [("", tensor)]


def _decays(name: str, parameter: torch.Tensor) -> bool:
    """Matrices decay; norms, biases and the rates of forget gates do not."""
    return parameter.ndim > 1 and not describe(name).stays_float32
