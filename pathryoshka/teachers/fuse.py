"""Frozen convolutional teachers made quicker without changing what they say.

On a small machine the teachers are the cost of a distillation, and a frozen network allows what a training one does
not: batch norm folded into the convolution before it; TensorFlow's one-sided padding, which PyTorch does by copying the
whole map, put into the kernel as zeros (a stride-2 kernel of 3 becomes one of 4 with symmetric padding); ReLU6 done
inside the convolution by oneDNN. Adjacent modules need not run in that order, so the result is compared with the
untouched model and thrown away if it differs.

Views a second of the tf_efficientnet_lite0 / 1 / 2 trunks, fp32, 128 px, batches of 32, one thread of a Xeon with
AVX-512 that others used too (interleaved, best of 10): contiguous 65 / 52 / 38; channels last 95 / 71 / 63; folded
129 / 100 / 89; padding in the kernel 164 / 123 / 104; ReLU6 inside 193 / 141 / 113, and 200 / 146 / 121 in batches of
16. The tokens are off by 4e-6. Tried and left out: tracing and freezing (no gain after the above, 3 s of start),
torch.compile with freezing (160 for lite0 where this made 190, after 14-56 s of start), bf16 (a quarter quicker,
features off by 4-7 %).
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-4


def quicken(trunk: nn.Module, input_size: int, on_cpu: bool, fp32: bool) -> nn.Module:
    """A copy of a frozen trunk in eval mode that gives the same to 1e-4, or the trunk itself where its modules do not
    run in the order in which they stand; either with channels last.

    Args:
        trunk: normalised pixels [B, 3, S, S] -> a tuple of tensors; on the CPU, where fp32 is not rounded to TF32 and
            the comparison means something.
        input_size: the only input side that the copy accepts.
        on_cpu: whether it will run on the CPU; larger kernels only pay there.
        fp32: whether it will run in fp32; convolution with ReLU6 inside exists for that, on CPUs with oneDNN.
    """
    trunk = trunk.to(memory_format=torch.channels_last)
    pixels = torch.randn(2, 3, input_size, input_size, generator=torch.Generator().manual_seed(0))
    quick = fold_batch_norm(copy.deepcopy(trunk))
    if on_cpu:
        quick = pad_in_kernel(quick, input_size)
    quick = quick.to(memory_format=torch.channels_last)
    if on_cpu and fp32 and torch.backends.mkldnn.is_available():
        quick = relu6_in_convolution(quick)
    for ours, theirs in zip(quick(pixels), trunk(pixels), strict=True):
        if not (ours - theirs).norm() <= TOLERANCE * theirs.norm():
            return trunk
    return quick


def fold_batch_norm(trunk: nn.Module) -> nn.Module:
    """Each BatchNorm2d that stands behind a convolution becomes part of it; an activation inside it stays."""
    for parent in list(trunk.modules()):
        for (name, conv), (name_norm, norm) in neighbours(parent):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                if norm.num_features != conv.out_channels or norm.running_mean is None:
                    continue
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, name_norm, getattr(norm, "act", nn.Identity()))
    return trunk


def pad_in_kernel(trunk: nn.Module, input_size: int) -> nn.Module:
    """Convolutions with TensorFlow's SAME padding as plain ones, for maps as they come at `input_size`: where one side
    is padded more, the kernel grows by zeros on the other side and the padding is symmetric."""
    sizes: dict[nn.Module, tuple[int, int]] = {}
    hooks = [
        conv.register_forward_pre_hook(lambda conv, args: sizes.__setitem__(conv, tuple(args[0].shape[-2:])))
        for conv in trunk.modules()
        if isinstance(conv, Conv2dSame)
    ]
    trunk(torch.zeros(1, 3, input_size, input_size))
    for hook in hooks:
        hook.remove()
    for parent in list(trunk.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, Conv2dSame) and conv in sizes:
                setattr(parent, name, with_static_padding(conv, sizes[conv]))
    return trunk


def with_static_padding(conv: Conv2dSame, size: tuple[int, int]) -> nn.Conv2d:
    sides = zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True)
    total = [max((-(-n // stride) - 1) * stride + (k - 1) * dilation + 1 - n, 0) for n, k, stride, dilation in sides]
    if any(t % 2 and d > 1 for t, d in zip(total, conv.dilation, strict=True)):
        return conv
    zeros = [t % 2 for t in total]
    padding = tuple((t + 1) // 2 for t in total)
    kernel = tuple(k + z for k, z in zip(conv.kernel_size, zeros, strict=True))
    weight = nn.functional.pad(conv.weight, (zeros[1], 0, zeros[0], 0))
    shape: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": conv.stride,
        "padding": padding,
        "dilation": conv.dilation,
    }
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, groups=conv.groups, device="meta", **shape)
    plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), conv.bias
    return plain.eval()


class ConvolutionReLU6(nn.Module):
    """Convolution and ReLU6 in one pass over memory, by the oneDNN operator that torch.compile itself uses."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        c = self.conv
        return torch.ops.mkldnn._convolution_pointwise(
            x_BCHW, c.weight, c.bias, c.padding, c.stride, c.dilation, c.groups, "hardtanh", [0.0, 6.0], ""
        )


def relu6_in_convolution(trunk: nn.Module) -> nn.Module:
    for parent in list(trunk.modules()):
        for (name, conv), (name_act, act) in neighbours(parent):
            if type(conv) is nn.Conv2d and isinstance(act, nn.ReLU6) and conv.padding_mode == "zeros":
                setattr(parent, name, ConvolutionReLU6(conv))
                setattr(parent, name_act, nn.Identity())
    return trunk


def neighbours(parent: nn.Module) -> list[tuple[tuple[str, nn.Module], tuple[str, nn.Module]]]:
    children = list(parent.named_children())
    return list(itertools.pairwise(children))
