"""Copies of a network that propagation rules can be applied to, and what a pass through one does.

Captum's rules hang on modules: what a network does outside of them goes by unseen, and the map is
then wrong without a word. So a pass is watched, operation by operation, before a rule is trusted.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from raybench.errors import ExplainError

# fmt: off
MOVES = frozenset((
    "alias", "as_strided", "as_strided_", "cat", "clone", "contiguous", "copy_", "detach",
    "empty", "expand", "flatten", "permute", "reshape", "select", "slice", "split", "squeeze",
    "t", "_to_copy", "transpose", "unbind", "unfold", "unsqueeze", "_unsafe_view", "view",
))
"""Operations that move values about and change none."""

LINEAR = MOVES | frozenset((
    "_adaptive_avg_pool2d", "add", "add_", "addmm", "avg_pool2d", "_batch_norm_no_update",
    "constant_pad_nd", "convolution", "cudnn_batch_norm", "mean", "mkldnn_convolution", "mm",
    "native_batch_norm", "_native_batch_norm_legit_no_training", "sub", "sum",
))
# fmt: on
"""Operations that are linear in the activations, with fixed weights; `mul` may multiply two."""


class Capped(nn.ReLU):
    """ReLU6 as a kind of ReLU, for rules that look for one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values cut off below 0 and above 6."""
        return x.clamp(0, 6)


class TwoReLU(nn.Module):
    """ReLU6 as the difference of two ReLUs, so that a rule for ReLU covers it exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values cut off below 0 and above 6."""
        # Two tensors: a rule that hangs on a module's input changes all that comes back to it.
        low: torch.Tensor = self.low(x + 0.0)
        high: torch.Tensor = self.high(x - 6.0)
        return low - high


class ApartPool(nn.Module):
    """Max pooling with its windows laid apart, of a tensor of its own.

    Captum's rule loses contributions where windows overlap, and is itself lost where the pooling
    reads a ReLU's output: both hang on the same tensor, and the ReLU notes it first.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = (
            (v, v) if isinstance(v, int) else tuple(v)
            for v in (pool.kernel_size, pool.stride, pool.padding)
        )
        self.pool = nn.MaxPool2d(self.kernel, self.kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The pooled maps, `[N, C, h, w]`."""
        (kh, kw), (sh, sw), (ph, pw) = self.kernel, self.stride, self.padding
        if self.kernel == self.stride and self.padding == (0, 0):
            whole: torch.Tensor = self.pool(x + 0.0)
            return whole
        padded = nn.functional.pad(x, (pw, pw, ph, ph), value=-1e30)
        windows = padded.unfold(2, kh, sh).unfold(3, kw, sw)
        n, c, h, w = windows.shape[:4]
        out = self.pool(windows.permute(0, 1, 2, 4, 3, 5).reshape(n, c, h * kh, w * kw))
        assert isinstance(out, torch.Tensor)
        return out


def detached_copy(net: nn.Module) -> nn.Module:
    """A copy with modules and parameters of its own, frozen; the values are shared, not doubled.

    Nothing in it works in place.
    """
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in net.parameters()
    }
    memo |= {id(buffer): buffer for buffer in net.buffers()}
    other = copy.deepcopy(net, memo).eval()
    for module in other.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010
    return other


def replace(net: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put what `make` makes of a module in its place; where it makes None, all stays."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            other = make(child)
            if other is not None:
                setattr(parent, name, other.eval())


def split_norm(module: nn.Module) -> nn.Module | None:
    """timm's batch normalisation with its activation as two modules; None for any other."""
    if type(module).__name__ != "BatchNormAct2d":
        return None
    norm: Any = module
    plain = nn.BatchNorm2d(norm.num_features, eps=norm.eps, affine=norm.affine)
    plain.weight, plain.bias = norm.weight, norm.bias
    plain.running_mean, plain.running_var = norm.running_mean, norm.running_var
    return nn.Sequential(plain, norm.drop, norm.act).eval()


def lay_apart(module: nn.Module) -> nn.Module | None:
    """Max pooling as captum's rule wants it; None for any other module."""
    if type(module) is not nn.MaxPool2d:
        return None
    if module.ceil_mode or module.dilation not in (1, (1, 1)):
        return None
    return ApartPool(module)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that run outside of modules of the given types."""

    def __init__(self, net: nn.Module, ruled: tuple[type[nn.Module], ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outside: Counter[str] = Counter()
        self.uses: Counter[str] = Counter()
        self._depth = 0
        self._handles: list[Any] = []
        for name, module in net.named_modules():
            if type(module) in ruled:
                self._handles.append(module.register_forward_pre_hook(self._entering(name)))
                self._handles.append(module.register_forward_hook(self._leaving))

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self.uses[name] += 1
            self._depth += 1

        return enter

    def _leaving(self, *_: Any) -> None:
        self._depth -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operation's name and let it run."""
        if self._depth == 0:
            self.outside[str(func.overloadpacket).rpartition(".")[2]] += 1
        return func(*args, **(kwargs or {}))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def watch(
    net: nn.Module, inputs: torch.Tensor, ruled: tuple[type[nn.Module], ...]
) -> tuple[torch.Tensor, Watch]:
    """The logits `[N, C]`, and what ran outside of the modules that have rules."""
    seen = Watch(net, ruled)
    try:
        with torch.no_grad(), seen:
            logits = net(inputs)
    finally:
        seen.close()
    return logits, seen


def need_rules(name: str, seen: Watch, allowed: frozenset[str], instead: str) -> None:
    """Refuse a network that does what no rule covers, or uses a module twice.

    Raises:
        ExplainError: so it is.
    """
    strange = sorted(op for op in seen.outside if op not in allowed)
    if strange:
        raise ExplainError(
            f"{name}: captum has no rule for what this network does ({', '.join(strange)}), so "
            f"its map would be wrong; choose {instead}"
        )
    twice = sorted(module for module, uses in seen.uses.items() if uses > 1)
    if twice:
        raise ExplainError(
            f"{name}: the network uses {', '.join(twice)} more than once in a pass, which the "
            f"rules cannot tell apart; choose {instead}"
        )
