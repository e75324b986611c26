"""The student in torch: EuroBERT blocks with LoRA beside every linear layer, pooled at the last token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .settings import Shape


class Linear(nn.Module):
    """A bias-free linear layer whose LoRA pair, where there is one, is added to what the weight gives."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outer, inner) * inner**-0.5)
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.weight)
        if self.lora_A is not None and self.lora_B is not None:
            y = y + functional.linear(functional.linear(x, self.lora_A), self.lora_B)
        return y

    def adapt(self, rank: int) -> None:
        """Begin a new adapter that changes nothing yet; the weight stays as it is."""
        self.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, self.weight.shape[1]) * self.weight.shape[1] ** -0.5)
        self.lora_B = nn.Parameter(torch.zeros(self.weight.shape[0], rank))


class Norm(nn.Module):
    """RMS norm in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps) * self.weight


class Attention(nn.Module):
    """All tokens of a text see each other; padding is seen by nobody."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(shape.hidden, shape.hidden) for _ in range(4))
        self._heads = shape.heads

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            p(x).view(batch, length, self._heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = functional.scaled_dot_product_attention(_turned(q, turn), _turned(k, turn), v, attn_mask=mask)
        return self.o_proj(seen.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (Linear(shape.hidden, shape.intermediate) for _ in range(2))
        self.down_proj = Linear(shape.intermediate, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm attention, pre-norm MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden, shape.eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, mask).float()
        return x + self.mlp(self.post_attention_layernorm(x)).float()  # type: ignore[no-any-return]


class Student(nn.Module):
    """Ids -> the state after the final norm at each text's last token."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.eps)
        half = shape.hidden // shape.heads // 2
        self._frequencies = shape.rope_theta ** (-torch.arange(half) / half)

    def forward(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(n_texts, hidden) float32."""
        longest = max(map(len, texts))
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        lengths = torch.tensor([len(text) for text in texts])
        mask = (torch.arange(longest) < lengths[:, None])[:, None, None, :]
        angles = torch.outer(torch.arange(longest), self._frequencies)
        turn = (torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1))
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, turn, mask)
        return self.norm(x[torch.arange(len(texts)), lengths - 1])  # type: ignore[no-any-return]

    def adapt(self, rank: int) -> list[nn.Parameter]:
        """Freeze everything and begin a new adapter; its parameters."""
        self.requires_grad_(False)
        for _, module in self.linears():
            module.adapt(rank)
        return [p for p in self.parameters() if p.requires_grad]

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Every linear layer under its name in the checkpoint."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Linear))


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE, the two halves of a head turned against each other."""
    cos, sin = turn
    first, second = x.float().chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)
