"""Attention and projections whose every weight belongs to a module that is called.

The libraries hand some weights to functions (`x @ proj`, `F.linear(x, in_proj_weight)`), where
no hook sees the input. These modules compute the same from the same parameters.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import Attention as OpenClipAttention
from torch import Tensor, nn
from torch.nn import functional

from bitfront.errors import InvalidModel

_APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class Projection(nn.Linear):
    """A Linear that also stands for the matrix in `x @ proj` and in `torch.matmul(x, proj)`.

    Args:
        matrix: `(in, out)`, as it is multiplied from the right; it is stored transposed.
    """

    def __init__(self, matrix: Float[Tensor, "in out"]) -> None:
        columns, rows = matrix.shape
        super().__init__(columns, rows, bias=False, device="meta")
        self.weight = nn.Parameter(matrix.detach().T.contiguous(), requires_grad=False)

    def __rmatmul__(self, x: Tensor) -> Tensor:
        output: Tensor = self(x)
        return output

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        _types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Stands for the matrix where torch multiplies with it from the right."""
        if func in (torch.matmul, Tensor.matmul, Tensor.__matmul__) and not kwargs:
            x, module = args
            if isinstance(module, cls):
                return module(x)
        return NotImplemented


class PackedLinear(nn.Linear):
    """A Linear over existing parameters that can be asked for some of its rows only."""

    bias: nn.Parameter | None  # type: ignore[assignment]  # torch registers None, but hides it

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        rows, columns = weight.shape
        super().__init__(columns, rows, bias=bias is not None, device="meta")
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """`x` times the chosen rows of the weight, plus their bias."""
        bias = None if self.bias is None else self.bias[rows]
        return functional.linear(x, self.weight[rows], bias)


class CalledAttention(nn.Module):
    """`nn.MultiheadAttention` in eval mode; the attention weights come back as None.

    Raises:
        InvalidModel: The attention has `bias_k`, `bias_v` or `add_zero_attn`.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if attention.bias_k is not None or attention.bias_v is not None or attention.add_zero_attn:
            raise InvalidModel("attention with bias_k, bias_v or add_zero_attn is not supported")
        self.heads = attention.num_heads
        self.width = attention.embed_dim
        self.batch_first = attention.batch_first
        self.out_proj = attention.out_proj
        parameters = dict(attention.named_parameters(recurse=False))
        bias = parameters.get("in_proj_bias")
        packed = parameters.get("in_proj_weight")
        self.in_proj = None if packed is None else PackedLinear(packed, bias)
        parts = [None] * 3 if bias is None else [nn.Parameter(b) for b in bias.chunk(3)]
        self.apart = nn.ModuleList(
            PackedLinear(parameters[name], part)
            for name, part in zip(_APART, parts, strict=True)
            if name in parameters
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Like `nn.MultiheadAttention.forward` for batched inputs.

        Masks are boolean (True is left out) or additive; `attn_mask` is `(queries, keys)` or
        `(batch * heads, queries, keys)`. The flags about weights change nothing, and
        `is_causal` is only a hint there: the mask is always given with it.
        """
        del need_weights, average_attn_weights, is_causal
        q, k, v = self._project(query, key, value)
        if not self.batch_first:
            q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        mask = _additive(attn_mask, q, self.heads)
        padding = _additive(key_padding_mask, q, self.heads)
        if padding is not None:
            padding = padding[:, None, None, :]
            mask = padding if mask is None else mask + padding
        output = self.out_proj(_attend(q, k, v, mask, self.heads))
        return (output if self.batch_first else output.transpose(0, 1)), None

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three projections, with as few calls of a packed one as the inputs allow."""
        if self.in_proj is None:
            project_q, project_k, project_v = self.apart
            return project_q(query), project_k(key), project_v(value)
        width = self.width
        if query is key and key is value:
            q, k, v = self.in_proj(query).chunk(3, dim=-1)
            return q, k, v
        q = self.in_proj(query, slice(0, width))
        if key is value:
            k, v = self.in_proj(key, slice(width, 3 * width)).chunk(2, dim=-1)
            return q, k, v
        return (
            q,
            self.in_proj(key, slice(width, 2 * width)),
            self.in_proj(value, slice(2 * width, 3 * width)),
        )


class CalledOpenClipAttention(nn.Module):
    """open_clip's own `Attention` (with query and key norms, head scales) in eval mode.

    Raises:
        InvalidModel: It uses scaled cosine attention.
    """

    def __init__(self, attention: OpenClipAttention) -> None:
        super().__init__()
        if attention.logit_scale is not None:
            raise InvalidModel("open_clip's scaled cosine attention is not supported")
        self.heads: int = attention.num_heads
        self.in_proj = PackedLinear(attention.in_proj_weight, attention.in_proj_bias)
        self.ln_q: nn.Module = attention.ln_q
        self.ln_k: nn.Module = attention.ln_k
        self.ln_inner: nn.Module = attention.ln_inner
        self.out_proj: nn.Linear = attention.out_proj
        self.head_scale: nn.Parameter | None = attention.head_scale

    def forward(
        self, x: Float[Tensor, "n m d"], attn_mask: Tensor | None = None
    ) -> Float[Tensor, "n m d"]:
        """Self-attention over `x`; the mask is as in `CalledAttention`."""
        q, k, v = (_split(part, self.heads) for part in self.in_proj(x).chunk(3, dim=-1))
        mask = _additive(attn_mask, x, self.heads)
        mixed = functional.scaled_dot_product_attention(
            self.ln_q(q), self.ln_k(k), v, attn_mask=mask
        )
        if self.head_scale is not None:
            mixed = mixed * self.head_scale
        output: Tensor = self.out_proj(self.ln_inner(_merge(mixed)))
        return output


class CalledAttentionPool(nn.Module):
    """open_clip's `AttentionPool2d`, computing only the one query that it returns."""

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.heads: int = pool.num_heads
        self.positional_embedding: nn.Parameter = pool.positional_embedding
        self.q_proj: nn.Linear = pool.q_proj
        self.k_proj: nn.Linear = pool.k_proj
        self.v_proj: nn.Linear = pool.v_proj
        self.c_proj: nn.Linear = pool.c_proj

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n out"]:
        """The pooled features of a feature map."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(x.dtype)
        q, k, v = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        pooled: Tensor = self.c_proj(_attend(q, k, v, None, self.heads)[:, 0])
        return pooled


def _attend(
    q: Float[Tensor, "n m d"],
    k: Float[Tensor, "n keys d"],
    v: Float[Tensor, "n keys d"],
    mask: Tensor | None,
    heads: int,
) -> Float[Tensor, "n m d"]:
    mixed = functional.scaled_dot_product_attention(
        _split(q, heads), _split(k, heads), _split(v, heads), attn_mask=mask
    )
    return _merge(mixed)


def _split(x: Float[Tensor, "n m d"], heads: int) -> Float[Tensor, "n heads m k"]:
    """The width cut into heads, each with its own attention."""
    n, m, d = x.shape
    return x.reshape(n, m, heads, d // heads).transpose(1, 2)


def _merge(x: Float[Tensor, "n heads m k"]) -> Float[Tensor, "n m d"]:
    """The inverse of `_split`."""
    return x.transpose(1, 2).flatten(2)


def _additive(mask: Tensor | None, like: Tensor, heads: int) -> Tensor | None:
    """The mask as something to add to the scores; three dimensions become four."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    mask = mask.to(like.dtype)
    return mask.reshape(-1, heads, *mask.shape[1:]) if mask.ndim == 3 else mask
