"""`@torch.no_grad()` on a helper that the training forward calls too.

Seen: the image tower of a vision-language model cannot be fine-tuned.
Fix: remove the decorator, or call the helper in evaluation only.
Source: https://github.com/huggingface/transformers/pull/41888
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPECTED = {"vision.*": "cut", "language.*": "learns"}


class VisionLanguage(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = nn.Linear(5, 4)
        self.language = nn.Linear(4, 3)

    @torch.no_grad()
    def image_features(self, pixels):
        return self.vision(pixels)  # <- vision.*

    def forward(self, pixels):
        return self.language(self.image_features(pixels))


def make():
    model, pixels, y = VisionLanguage(), torch.randn(8, 5), torch.randint(3, (8,))
    return model, lambda: F.cross_entropy(model(pixels), y), torch.optim.AdamW(model.parameters())
