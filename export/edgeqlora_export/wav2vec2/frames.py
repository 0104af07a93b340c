"""What the gates in time of a wav2vec 2.0 hear: four features of each encoder position, from the samples alone.

A frame is what one output of the convolutions sees. Only operators that TensorRT 8.2 takes: sums over samples and frames
are 2-D convolutions with fixed kernels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

DECADES = 4
"""Range of the level, below the loudest frame of the clip."""
SOUND = 0.1
"""Level from which a frame counts as sound, of 1."""
BOX, SIDE = 13, 25
"""Frames of the mean that contrast is against, and on each side of a change: 0.26 and 0.5 s at 20 ms."""
EPS = 1e-3


class FrameFeatures(nn.Module):
    """Energy, flux, contrast and change, each between -1 and 1; exactly 0 on frames of zeros, as padding is."""

    def __init__(self, kernels: list[int], strides: list[int]) -> None:
        """kernels, strides: of the convolutions over the samples."""
        super().__init__()
        self.hop = math.prod(strides)
        field = 1 + sum((k - 1) * math.prod(strides[:i]) for i, k in enumerate(kernels))
        sums = {"samples": (field, 1 / field), "steps": (field - 1, 1 / field), "box": (BOX, 1 / BOX)}
        for name, (size, value) in {**sums, "side": (SIDE, 1 / SIDE)}.items():
            self.register_buffer(name, torch.full((1, 1, 1, size), value), persistent=False)
        self.register_buffer("step", torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2), persistent=False)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """audio (batch, n_samples) -> (batch, n_frames, 4)

        energy: level over DECADES below the loudest frame, 0 to 1. flux: its rise. contrast: energy against its mean over
        BOX frames. change: difference between the brightness (share of fast movement, 0 to 1) of the SIDE frames before
        and after, 0 where one side is silent.
        """
        conv, stride = nn.functional.conv2d, (1, self.hop)
        audio = audio.unsqueeze(1).unsqueeze(1)
        power = conv(audio.pow(2), self.samples, stride=stride)
        fast = conv((audio[..., 1:] - audio[..., :-1]).pow(2), self.steps, stride=stride)
        loudest = power.amax(3, keepdim=True) + 1e-10
        power, fast = power / loudest, fast / loudest
        energy = torch.log(1 + 10**DECADES * power) / math.log(1 + 10**DECADES)
        is_sound = (energy / SOUND).clamp(0, 1)
        flux = torch.relu(conv(energy, self.step, padding=(0, 1))[..., :-1])
        contrast = (energy - conv(energy, self.box, padding=(0, BOX // 2))) * is_sound
        brightness = fast / (4 * power + EPS)
        bright, sound = (conv(x, self.side, padding=(0, SIDE)) for x in (brightness * energy, energy))
        before, after = slice(None, -SIDE - 1), slice(SIDE + 1, None)
        difference = (bright[..., before] * sound[..., after] - bright[..., after] * sound[..., before]).abs()
        change = difference / (sound[..., before] * sound[..., after] + EPS) * is_sound
        return torch.cat([energy, flux, contrast, change], 2).squeeze(1).transpose(1, 2)


def frame_parts(model: Any) -> tuple[Any, nn.Module]:
    """The module of a transformers Wav2Vec2ForCTC that hears the samples, and what makes features of them."""
    features = FrameFeatures(list(model.config.conv_kernel), list(model.config.conv_stride))
    return model.wav2vec2, features.to(model.device)
