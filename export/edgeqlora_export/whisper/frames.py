"""What Whisper's gates in time hear: four features of each encoder position, from the log-mel alone.

Constants are in mel frames of 10 ms. Only operators that TensorRT 8.2 takes: boxes are 2-D convolutions with fixed kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SOUND = 0.02
"""Energy from which a frame counts as sound, of 1."""
BOX, SIDE = 25, 50
"""Frames of the mean that contrast is against, and on each side of a change."""
EPS = 1e-3


class FrameFeatures(nn.Module):
    """Energy, flux, contrast and change, each between -1 and 4; exactly 0 where no sample of the clip reaches."""

    def __init__(self) -> None:
        super().__init__()
        kernels = {
            "step": torch.tensor([-1.0, 1.0]),
            "box": torch.full((BOX,), 1 / BOX),
            "side": torch.full((SIDE,), 1 / SIDE),
            "pair": torch.full((2,), 0.5),
        }
        for name, kernel in kernels.items():
            self.register_buffer(name, kernel.reshape(1, 1, 1, -1), persistent=False)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """mel (batch, n_mels, n_frames), normalised as Whisper does it -> (batch, n_frames / 2, 4)

        energy: mean over the mel bins of the level above the clip's floor, 0 to 1. flux: rise against the frame before.
        contrast: energy against its mean over BOX frames. change: how much the mean spectra of the SIDE frames before
        and after differ in shape, 0 (the same, or silence on one side) to 1 (opposite).
        """
        conv = nn.functional.conv2d
        # Whisper cuts the range at 8 decades, which it maps to 2. Padding lies on the floor.
        level = ((mel - mel.amin((1, 2), keepdim=True)) / 2).unsqueeze(1)
        energy = level.mean(2, keepdim=True)
        is_sound = (energy / SOUND).clamp(0, 1)  # a slope, not a step: half precision says the same
        flux = 4 * torch.relu(conv(level, self.step, padding=(0, 1))[..., :-1]).mean(2, keepdim=True)
        contrast = (energy - conv(energy, self.box, padding=(0, BOX // 2))) * is_sound
        sides = conv(level - energy, self.side, padding=(0, SIDE))
        before, after = sides[..., : -SIDE - 1], sides[..., SIDE + 1 :]
        product = (before * after).sum(2, keepdim=True)
        norms = before.pow(2).sum(2, keepdim=True).sqrt() * after.pow(2).sum(2, keepdim=True).sqrt()
        change = (norms - product) / (norms + EPS) * is_sound / 2
        z = torch.cat([energy, flux, contrast, change], 2)
        return conv(z, self.pair, stride=(1, 2)).squeeze(1).transpose(1, 2)


def frame_parts(model: Any) -> tuple[Any, nn.Module]:
    """The module of a transformers Whisper that hears the log-mel, and what makes features of it."""
    return model.model.encoder, FrameFeatures().to(model.device)
