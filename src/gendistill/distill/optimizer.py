"""AdamW on float32 master weights.

bf16 has 8 bits of precision: an update of 1e-5 to a weight of 1.0 is lost, every time. So the optimizer works on
float32 copies, gradients are summed over micro-batches in float32, and the model's own weights are rounded from them.
"""

import torch
from torch import nn

from gendistill.recipe import Stage

DECAY_GATE = ("A_log", "dt_bias")  # float32 always, and never decayed


class MasterOptimizer:
    """AdamW over the trainable parameters of a float32 model, which is rounded to `dtype` here for the arithmetic.

    Where nothing is rounded (dtype float32; A_log and dt_bias always) a parameter is its own master.
    """

    def __init__(self, model: nn.Module, stage: Stage, dtype: torch.dtype):
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        rounded = {name: p for name, p in model.named_parameters() if not name.endswith(DECAY_GATE)}
        if dtype == torch.float32:
            rounded = {}
        self.masters = {
            name: p.detach().clone().requires_grad_() if name in rounded else p for name, p in self.parameters.items()
        }
        for parameter in rounded.values():
            parameter.data = parameter.data.to(dtype)
        decay = [m for name, m in self.masters.items() if _decays(name, m)]
        no_decay = [m for name, m in self.masters.items() if not _decays(name, m)]
        groups = [{"params": decay, "weight_decay": stage.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
        self.peak, self.clip = stage.learning_rate, stage.gradient_clip
        cuda = next(iter(self.masters.values())).is_cuda
        self.adamw = torch.optim.AdamW(groups, lr=self.peak, betas=(0.9, 0.95), fused=cuda)

    def collect_gradients(self) -> None:
        """After each micro-batch: adds the model's gradients to the masters' and frees them."""
        for name, master in self.masters.items():
            parameter = self.parameters[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def step(self, learning_rate_share: float) -> float:
        """Clips, updates the masters and rounds them into the model; returns the gradient norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), self.clip).item()
        for group in self.adamw.param_groups:
            group["lr"] = self.peak * learning_rate_share
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self._publish()
        return norm

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's weights by name, the trained ones in float32."""
        return {name: self.masters.get(name, p).detach() for name, p in self.model.named_parameters()}

    def state_dict(self) -> dict:
        return {"masters": {n: m.detach() for n, m in self.masters.items()}, "adamw": self.adamw.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        self.adamw.load_state_dict(state["adamw"])
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        for name, master in self.masters.items():
            if master is not self.parameters[name]:
                self.parameters[name].copy_(master)


def _decays(name: str, parameter: torch.Tensor) -> bool:
    """Matrices decay; norms, biases and the decay gate's own parameters do not."""
    return parameter.ndim > 1 and not name.endswith(DECAY_GATE)
