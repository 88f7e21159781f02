"""Vision Transformer: an image is a sentence of patches, and every patch may look at every other.

    attention   head = softmax(Q Kᵀ / √D_h) V,      Q, K, V = X W_Q, X W_K, X W_V,      MSA(X) = [head₁ … head_H] W_O
    block       z' = z + MSA(LN(z)),        z ← z' + MLP(LN(z'))
    image       z₀ = [x_cls; x_p¹ E; …; x_pᴺ E] + E_pos
    answer      y = LN(z_L)⁰, the class token of the last block

X holds N tokens of D numbers each, H heads share them, D_h = D / H; x_pⁿ is a patch of P × P pixels as one row. Nothing
in a block knows where a token stands: E_pos alone tells.

Vaswani et al., "Attention Is All You Need", 2017; Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021; and, for
sentences of words and learning from what was masked, Devlin, Chang, Lee and Toutanova, "BERT", 2019. `rollout` is
Abnar and Zuidema's, "Quantifying Attention Flow in Transformers", 2020. Weights are named as timm names them, so that
`vit_tiny_patch16_224` and its like can be loaded as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import checks, training

# The blocks --------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention: tokens (B, N, D) to (B, N, D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V, (B, H, N, D_h) each."""
        return self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def weights(self, x: Tensor) -> Tensor:
        """How much each token takes from each other, (B, H, N, N); every row sums to 1."""
        q, k, _ = self.split(x)
        return (q @ k.mT / q.shape[3] ** 0.5).softmax(dim=3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        heads = F.scaled_dot_product_attention(q, k, v)     # weights(x) @ v; the N × N weights are never written down
        return self.proj(heads.transpose(1, 2).flatten(2))                                  # (B, N, H · D_h = D)


class Block(nn.Module):
    """Attention, then two layers for each token alone; each adds to what it was given, (B, N, D) to (B, N, D)."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim)))

    def forward(self, z: Tensor) -> Tensor:
        z = z + self.attn(self.norm1(z))
        return z + self.mlp(self.norm2(z))


class Transformer(nn.Module):
    """Blocks one after the other; what becomes their first tokens a class derived from it says, in `embed`.

    Args:
        dim: D, numbers a token; a multiple of `heads`.
        depth: blocks.
        heads: H.
        hidden: width of the MLP, four times D in all the papers; None for that.
    """

    def __init__(self, *, dim: int, depth: int, heads: int, hidden: int | None = None):
        super().__init__()
        for name, value in (("dim", dim), ("depth", depth), ("heads", heads)):
            checks.positive_int(value, name)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of the {heads} heads, got {dim}")
        hidden = 4 * dim if hidden is None else checks.positive_int(hidden, "hidden")
        self.dim = dim
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def embed(self, x: Tensor) -> Tensor:
        """z₀, (B, N, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define embed")

    def states(self, x: Tensor) -> list[Tensor]:
        """The tokens before the first block and after each, depth + 1 times (B, N, D)."""
        states = [self.embed(x)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states

    def encode(self, x: Tensor) -> Tensor:
        """The tokens after the last block, normalised: (B, N, D)."""
        return self.norm(self.states(x)[-1])

    def attentions(self, x: Tensor) -> list[Tensor]:
        """The weights of each block's attention, (B, H, N, N) each."""
        return [block.attn.weights(block.norm1(z)) for block, z in zip(self.blocks, self.states(x), strict=False)]


# Images ------------------------------------------------------------------------------------------------------


class ViT(Transformer):
    """Images (B, C, H, W) to logits (B, classes), or to the class token (B, D) where there are no classes.

    Args:
        size: side of the images in pixels, a multiple of `patch`.
        patch: P.
        channels: of the images.
        classes: 0 for none.
        positions: False leaves E_pos out; the network then cannot tell one order of the patches from another.
        dim, depth, heads, hidden: see `Transformer`.
    """

    def __init__(self, *, size: int, patch: int, channels: int = 3, classes: int = 0, positions: bool = True,
                 dim: int, depth: int, heads: int, hidden: int | None = None):
        super().__init__(dim=dim, depth=depth, heads=heads, hidden=hidden)
        for name, value in (("patch", patch), ("channels", channels), ("size", size)):
            checks.positive_int(value, name)
        checks.positive_int(classes, "classes", minimum=0)
        if size % patch:
            raise ValueError(f"size must be a multiple of the patch, {patch}, got {size}")
        self.patch, self.grid = patch, (size // patch, size // patch)
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(channels, dim, patch, stride=patch)))      # E
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + size ** 2 // patch ** 2, dim)) if positions else None
        self.head = nn.Linear(dim, classes) if classes else nn.Identity()
        for start in self.head.parameters():
            nn.init.zeros_(start)

    def embed(self, x: Tensor) -> Tensor:
        """z₀, (B, 1 + N, D), the class token first. Images of another size get E_pos stretched over their patches."""
        channels = self.patch_embed.proj.in_channels
        if x.ndim != 4 or x.shape[1] != channels or any(side == 0 or side % self.patch for side in x.shape[2:]):
            raise ValueError(f"images must be (B, {channels}, H, W) with H and W multiples of {self.patch}, got "
                             f"{tuple(x.shape)}: resize, crop or expand them")
        patches = self.patch_embed(x)                                                       # (B, D, h, w)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).mT], dim=1)
        if self.pos_embed is None:
            return tokens
        return tokens + stretched(self.pos_embed, self.grid, patches.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x)[:, 0])

    def maps(self, x: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """The patches' tokens after some blocks, counted from 0, as maps (B, D, h, w); the class token is left out."""
        if wrong := [block for block in blocks if block not in range(len(self.blocks))]:
            raise ValueError(f"blocks must lie between 0 and {len(self.blocks) - 1}, got {wrong[0]!r}")
        h, w = x.shape[2] // self.patch, x.shape[3] // self.patch
        states = self.states(x)[1:]
        return [states[block][:, 1:].mT.unflatten(2, (h, w)) for block in blocks]


def stretched(positions: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """E_pos for another grid of patches, (1, 1 + h·w, D) to (1, 1 + H·W, D); the class token's row stays as it is."""
    if tuple(old) == tuple(new):
        return positions
    cls, grid = positions[:, :1], positions[:, 1:].mT.unflatten(2, tuple(old))              # (1, D, h, w)
    grid = F.interpolate(grid, tuple(new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([cls, grid.flatten(2).mT], dim=1)


def vit_tiny(**settings) -> ViT:
    """Ti/16 of 5.7 million weights, timm's `vit_tiny_patch16_224`; `settings` replace what is different."""
    return ViT(**{"size": 224, "patch": 16, "dim": 192, "depth": 12, "heads": 3} | settings)


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """How much of each first token has come to each last one, (B, N, N); every row sums to 1.

    Args:
        attentions: one (B, H, N, N) a block, at least one, each row of which sums to 1.

    The weights of each block are averaged over heads; the sum beside the attention passes half of every token on
    unchanged; and the blocks are multiplied up. Values and MLPs are not asked: it is a rough account.
    """
    if not attentions:
        raise ValueError("attentions must hold the weights of at least one block")
    same = torch.eye(attentions[0].shape[3]).to(attentions[0])
    flow = same.expand(len(attentions[0]), -1, -1)
    for weights in attentions:                                                              # (B, H, N, N)
        flow = (weights.mean(1) + same) / 2 @ flow
    return flow


# Sentences ---------------------------------------------------------------------------------------------------

CLS, MASK = 0, 1                                # the words that every vocabulary begins with
UNASKED = -100                                  # a target that cross entropy leaves out


class BERT(Transformer):
    """Sentences (B, N) of word numbers, [CLS] first, to what might stand at each place: logits (B, N, words).

    One sentence at a time: what the paper adds for pairs of them, segments and the guess whether one follows the other,
    is left out. And it is simpler: layers are normalised before attention and MLP, as in ViT, where the first
    transformers did it after the sums; there is no dropout, no layer before that of the words, and that layer does not
    share its weights with their embedding.

    Args:
        words: of the vocabulary, `CLS` and `MASK` among them.
        length: of the longest sentence.
        positions: False leaves E_pos out.
        dim, depth, heads, hidden: see `Transformer`.
    """

    def __init__(self, *, words: int, length: int, positions: bool = True, dim: int = 64, depth: int = 2,
                 heads: int = 4, hidden: int | None = None):
        super().__init__(dim=dim, depth=depth, heads=heads, hidden=hidden)
        self.words, self.length = checks.positive_int(words, "words", minimum=3), checks.positive_int(length, "length")
        self.word_embed = nn.Embedding(words, dim)
        nn.init.normal_(self.word_embed.weight, std=0.02)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, length, dim)) if positions else None
        self.head = nn.Linear(dim, words)

    def embed(self, x: Tensor) -> Tensor:
        """z₀, (B, N, D)."""
        if x.ndim != 2 or not 0 < x.shape[1] <= self.length:
            raise ValueError(f"sentences must be (B, N) with at least 1 and at most {self.length} words, got "
                             f"{tuple(x.shape)}")
        tokens = self.word_embed(x)
        return tokens if self.pos_embed is None else tokens + self.pos_embed[:, :x.shape[1]]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))


def masked(sentences: Tensor, words: int, share: float = 0.15) -> tuple[Tensor, Tensor]:
    """Sentences (B, N) with a share of their words hidden, and the words that were there: (B, N) each.

    Of the words that are asked for eight in ten become MASK, one in ten becomes any word and one in ten stays: a net
    that is fine-tuned never sees MASK again, and shall have had reason to look at every word. Targets are `UNASKED`
    where nothing is asked. [CLS], at the first place, is never asked for. Each word is asked for by a coin of its own,
    where the paper takes a fixed number of each sentence; and "any word" is none of the two special ones.

    Args:
        words: of the vocabulary, at least 3.
        share: of the words that are asked for, in [0, 1].
    """
    checks.positive_int(words, "words", minimum=3)
    checks.within(share, 0, 1, "share")
    drawn, how = torch.rand(2, *sentences.shape, device=sentences.device)
    asked = drawn < share
    asked[:, 0] = False
    other = torch.randint(MASK + 1, words, sentences.shape, device=sentences.device)
    hidden = torch.where(how < 0.8, MASK, torch.where(how < 0.9, other, sentences))
    return torch.where(asked, hidden, sentences), torch.where(asked, sentences, UNASKED)


def learn_masked(
    net: BERT,
    sentences: Tensor,
    *,
    share: float = 0.15,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    callback: Callable[[int, nn.Module], None] | None = None,
) -> list[float]:
    """Train `net` to say which words were hidden, with no label at all; returns the mean loss of each epoch.

    Args:
        sentences: (N, length) int64, [CLS] first.
        share: of the words that are asked for, above 0, at most 1.
        epochs, batch_size, lr, callback: see `training.train`; the first tenth of the epochs warms up.
    """
    checks.between(share, 0, 1, "share")
    if sentences.ndim != 2 or sentences.dtype != torch.int64 or sentences.numel() == 0:
        raise ValueError(f"sentences must be (N, length) int64, got {tuple(sentences.shape)} {sentences.dtype}")
    low, high = sentences.min().item(), sentences.max().item()
    if low < 0 or high >= net.words:
        raise ValueError(f"sentences must hold words from 0 to {net.words - 1}, got {low} to {high}: name more words, "
                         "or number them anew")
    if (sentences[:, 0] != CLS).any():
        raise ValueError(f"sentences must begin with [CLS], which is {CLS}, got {sentences[:, 0].max().item()}")

    def loss(batch: Tensor) -> Tensor:
        hidden, truth = masked(batch, net.words, share)
        wrong = F.cross_entropy(net(hidden).flatten(0, 1), truth.flatten(), ignore_index=UNASKED, reduction="sum")
        return wrong / (truth != UNASKED).sum().clamp_min(1)

    return training.train(net, loss, sentences, epochs=epochs, batch_size=batch_size, lr=lr, warmup=epochs // 10,
                          callback=callback)


class OnClassToken(nn.Module):
    """A pretrained transformer with a new linear layer on its class token: to be fine-tuned, to logits (B, classes).

    BERT has one more layer in between, trained while guessing what follows what.
    """

    def __init__(self, net: Transformer, classes: int):
        super().__init__()
        self.net, self.head = net, nn.Linear(net.dim, checks.positive_int(classes, "classes", minimum=2))
        for start in self.head.parameters():
            nn.init.zeros_(start)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net.encode(x)[:, 0])
