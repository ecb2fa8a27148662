"""Small models whose weights are not in linear layers and convolutions, written as other libraries write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv1D(nn.Module):
    """A linear layer with the weight (in, out), as GPT-2 has it: no `nn.Linear`."""

    def __init__(self, num_outputs: int, num_inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.reshape(*x.shape[:-1], -1)


class RootNorm(nn.Module):
    """A normalization of two dimensions, (T, C)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class SmallGpt(nn.Module):
    """GPT-2 in small with tied embeddings: (B, 8) token numbers below 50 -> (B, 8, 50)."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50, 16, padding_idx=0), nn.Embedding(8, 16)
        self.norm = RootNorm(8, 16)
        self.c_attn, self.c_proj = Conv1D(48, 16), Conv1D(16, 16)
        self.fc, self.out = Conv1D(32, 16), Conv1D(16, 32)
        self.lm_head = nn.Linear(16, 50, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(8, device=tokens.device))
        q, k, v = self.c_attn(self.norm(x)).chunk(3, -1)
        x = x + self.c_proj((q @ k.transpose(1, 2)).softmax(-1) @ v)
        return self.lm_head(x + self.out(self.fc(x).relu()))  # type: ignore[no-any-return]


class RawMatrices(nn.Module):
    """Matrices that are parameters of their own: (B, 8, 16) -> (B, 8, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(0.2 * torch.randn(16, 16))
        self.experts = nn.Parameter(0.2 * torch.randn(3, 16, 16))
        self.stack = nn.ParameterList([0.2 * torch.randn(16, 16) for _ in range(2)])
        self.lora = nn.ParameterDict({"A": torch.randn(16, 2), "B": 0.1 * torch.randn(2, 16)})
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.randn(8, 16))
        self.queries = nn.Parameter(torch.randn(1, 8, 16))
        self.relative_position_bias_table = nn.Parameter(torch.randn(8, 8))
        self.bias = nn.Parameter(torch.randn(8, 16))
        self.A_log = nn.Parameter(torch.randn(8, 16))
        self.scale = nn.Parameter(torch.ones(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.class_token + self.pos_embed + self.queries + self.bias + self.A_log.exp()
        x = self.relative_position_bias_table.softmax(-1) @ (x @ self.proj)
        x = x + torch.einsum("btc,ecd->btd", x, self.experts) + x @ self.lora["A"] @ self.lora["B"]
        for matrix in self.stack:
            x = x @ matrix
        return x * self.scale.flatten()


class TextClassifier(nn.Module):
    """Most of its weights are in embeddings: (B, 8) token numbers below 500 -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.bag = nn.Embedding(500, 16), nn.EmbeddingBag(500, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.words(tokens).mean(1) + self.bag(tokens))  # type: ignore[no-any-return]
