"""The transformer against timm's, against its formula, and against what it must not know."""

import pytest
import timm
import torch
from torch.nn import functional as F

from adlearn import training
from adlearn.methods import vit

SMALL = {"size": 32, "patch": 8, "dim": 24, "depth": 3, "heads": 3}


@pytest.fixture
def small():
    torch.manual_seed(0)
    return vit.ViT(classes=5, **SMALL).eval()


@torch.no_grad()
def shaken(net):
    """All weights moved, those too that begin with 0."""
    for weight in net.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    return net


@pytest.mark.parametrize("classes", [0, 7])
def test_gives_what_timm_gives_from_the_same_weights(classes):
    torch.manual_seed(0)
    theirs = shaken(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=classes).eval())
    ours = vit.vit_tiny(classes=classes).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs(images)
        assert expected.std() > 0.1
        assert torch.allclose(ours(images), expected, atol=1e-5, rtol=1e-4)


def test_maps_are_those_of_timms_blocks():
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False, features_only=True, out_indices=(2, 11),
                               img_size=64).eval()
    ours = vit.vit_tiny(size=64).eval()
    ours.load_state_dict({name.removeprefix("model."): value for name, value in theirs.state_dict().items()},
                         strict=False)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        for found, expected in zip(ours.maps(images, (2, 11)), theirs(images), strict=True):
            assert torch.allclose(found, expected, atol=1e-4)


def test_attention_is_its_formula():
    torch.manual_seed(0)
    attention, x = vit.Attention(12, 3), torch.randn(2, 7, 12)
    weights = attention.weights(x)
    assert torch.allclose(weights.sum(3), torch.ones(2, 3, 7))
    q, k, v = attention.qkv(x).split(12, dim=2)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        by_hand = (q[:, :, part] @ k[:, :, part].transpose(1, 2) / 2).softmax(2)
        assert torch.allclose(weights[:, h], by_hand, atol=1e-6)
        heads.append(by_hand @ v[:, :, part])
    assert torch.allclose(attention(x), attention.proj(torch.cat(heads, 2)), atol=1e-6)


def test_without_positions_blocks_cannot_see_order():
    torch.manual_seed(0)
    block, x, order = vit.Block(12, 3, 48), torch.randn(2, 9, 12), torch.randperm(9)
    assert torch.allclose(block(x[:, order]), block(x)[:, order], atol=1e-5)            # equivariant


@pytest.mark.parametrize("positions", [True, False])
def test_positions_tell_the_patches_apart(positions):
    torch.manual_seed(0)
    net = shaken(vit.ViT(positions=positions, **SMALL)).eval()
    image = torch.rand(1, 3, 32, 32)
    shuffled = torch.cat([image[..., 16:], image[..., :16]], dim=3)                     # whole patches change places
    assert torch.allclose(net(image), net(shuffled), atol=1e-5) is not positions


def test_starts_as_the_paper_says(small):
    assert (small.cls_token == 0).all()
    assert (small.head.weight == 0).all()
    assert 0.015 < small.pos_embed.std() < 0.025
    assert small.patch_embed.proj.bias is not None
    assert sum(weight.numel() for weight in vit.vit_tiny(classes=1000).parameters()) == 5_717_416


def test_stretched_positions_keep_the_class_token_and_the_corners():
    positions = torch.cat([torch.full((1, 1, 2), 9.0), torch.arange(16.0).view(1, 16, 1).expand(-1, -1, 2)], dim=1)
    wider = vit.stretched(positions, (4, 4), (8, 6))
    assert wider.shape == (1, 49, 2)
    assert (wider[:, 0] == 9).all()
    grid = wider[0, 1:, 0].view(8, 6)
    assert (grid.diff(dim=0) > 0).all()
    assert (grid.diff(dim=1) > 0).all()
    assert torch.equal(vit.stretched(positions, (4, 4), (4, 4)), positions)
    from timm.layers import resample_abs_pos_embed

    assert torch.allclose(wider, resample_abs_pos_embed(positions, [8, 6]), atol=1e-5)


def test_takes_images_of_other_sizes(small):
    assert small(torch.rand(2, 3, 48, 32)).shape == (2, 5)
    assert small.maps(torch.rand(2, 3, 48, 32), (0, 2))[1].shape == (2, 24, 6, 4)
    with pytest.raises(ValueError, match="multiples of 8"):
        small(torch.rand(1, 3, 36, 32))


def test_rollout_of_attention_that_looks_nowhere_else_changes_nothing():
    same = torch.eye(5).expand(2, 3, 5, 5)
    assert torch.allclose(vit.rollout([same, same]), torch.eye(5).expand(2, 5, 5))


def test_rollout_by_hand(small):
    weights = small.attentions(torch.rand(2, 3, 32, 32))
    assert [tuple(w.shape) for w in weights] == [(2, 3, 17, 17)] * 3
    flow = torch.eye(17)
    for layer in weights:
        flow = (0.5 * layer.mean(1) + 0.5 * torch.eye(17)) @ flow
    assert torch.allclose(vit.rollout(weights), flow, atol=1e-6)
    assert torch.allclose(flow.sum(2), torch.ones(2, 17), atol=1e-5)


def test_masks_as_bert_does():
    torch.manual_seed(0)
    sentences = torch.randint(2, 50, (4000, 12))
    sentences[:, 0] = vit.CLS
    hidden, truth = vit.masked(sentences, 50, 0.15)
    asked = truth != vit.UNASKED
    assert not asked[:, 0].any()
    assert abs(asked[:, 1:].float().mean() - 0.15) < 0.01
    assert torch.equal(truth[asked], sentences[asked])
    assert torch.equal(hidden[~asked], sentences[~asked])
    assert abs((hidden[asked] == vit.MASK).float().mean() - 0.8) < 0.02
    kept = (hidden[asked] == sentences[asked]).float().mean()
    assert abs(kept - 0.1 - 0.1 / 48) < 0.02
    assert hidden[asked][hidden[asked] != vit.MASK].min() > vit.MASK


def test_learns_the_missing_word_from_its_neighbours_and_is_fine_tuned():
    torch.manual_seed(0)
    word = torch.randint(2, 12, (512, 1))
    sentences = torch.cat([torch.full((512, 1), vit.CLS), word, word, word], dim=1)         # it says everything thrice
    net = vit.BERT(words=12, length=4, dim=24, depth=1, heads=2)
    history = vit.learn_masked(net, sentences, epochs=20, lr=5e-3)
    assert history[0] > 1.5
    assert history[-1] < 0.8
    asked = sentences.clone()
    asked[:, 2] = vit.MASK
    assert (net(asked)[:, 2].argmax(1) == word[:, 0]).float().mean() > 0.95
    tuned, labels = vit.OnClassToken(net, 2), (word[:, 0] > 6).long()
    training.train(tuned, lambda x, y: F.cross_entropy(tuned(x), y), sentences[:64], labels[:64], epochs=15,
                   batch_size=32, lr=3e-3)
    assert (tuned(sentences[64:]).argmax(1) == labels[64:]).float().mean() > 0.9


def test_the_judge_looks_at_the_class_token():
    net = vit.BERT(words=12, length=4, dim=24, depth=1, heads=2)
    judge, asked = vit.OnClassToken(net, 3), []
    judge.head.register_forward_pre_hook(lambda _, tokens: asked.append(tokens[0]))
    sentences = torch.tensor([[0, 5, 6, 7], [0, 3, 3, 2]])
    assert torch.equal(judge(sentences), torch.zeros(2, 3))                          # the new layer starts from 0
    assert torch.equal(asked[0], net.encode(sentences)[:, 0])


@pytest.mark.parametrize(("make", "complaint"), [
    (lambda: vit.ViT(**SMALL | {"heads": 5}), "multiple of the 5 heads"),
    (lambda: vit.ViT(**SMALL | {"size": 30}), "multiple of the patch"),
    (lambda: vit.ViT(**SMALL | {"depth": 0}), "depth"),
    (lambda: vit.ViT(classes=-1, **SMALL), "classes"),
    (lambda: vit.BERT(words=2, length=4), "words"),
    (lambda: vit.BERT(words=9, length=4)(torch.zeros(2, 5, dtype=torch.int64)), "at most 4 words"),
    (lambda: vit.learn_masked(vit.BERT(words=9, length=4), torch.full((3, 4), 9), epochs=1), "from 0 to 8"),
    (lambda: vit.learn_masked(vit.BERT(words=9, length=4), torch.full((3, 4), 8), share=0, epochs=1), "share"),
    (lambda: vit.learn_masked(vit.BERT(words=9, length=4), torch.full((3, 4), 8), epochs=1), r"begin with \[CLS\]"),
    (lambda: vit.learn_masked(vit.BERT(words=9, length=4), torch.zeros(0, 4, dtype=torch.int64), epochs=1),
     r"sentences must be \(N, length\) int64, got \(0, 4\)"),
    (lambda: vit.masked(torch.zeros(2, 4, dtype=torch.int64), 2), "words"),
    (lambda: vit.masked(torch.zeros(2, 4, dtype=torch.int64), 9, 1.5), "share"),
    (lambda: vit.OnClassToken(vit.BERT(words=9, length=4), 1), "classes"),
    (lambda: vit.ViT(**SMALL)(torch.rand(2, 1, 32, 32)), r"images must be \(B, 3, H, W\)"),
    (lambda: vit.ViT(**SMALL)(torch.rand(2, 3, 0, 32)), r"images must be \(B, 3, H, W\)"),
    (lambda: vit.ViT(**SMALL).maps(torch.rand(2, 3, 32, 32), (0, 3)), "blocks must lie between 0 and 2, got 3"),
    (lambda: vit.rollout([]), "attentions must hold"),
])
def test_refuses(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
