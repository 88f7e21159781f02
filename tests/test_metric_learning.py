"""Metric learning and the classifier with company: they learn what they claim to, and refuse what they cannot use."""

import pytest
import torch

from adlearn import data, losses, metrics, training
from adlearn.methods import metric_learning
from adlearn.nets import Encoder, ProjectionHead, ResNet, resnet18


def striped(count=300, seed=0):
    """Three classes that differ in the direction of their stripes, whose phase, colours and noise are random."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    steps = torch.tensor([[1, 0], [0, 1], [1, 1]])[labels]                              # (N, 2)
    down, across = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    phase = torch.randint(0, 4, (count, 1, 1), generator=generator)
    bright = (steps[:, 0, None, None] * down + steps[:, 1, None, None] * across + phase) % 4 > 1
    ink, paper = torch.rand(2, count, 3, 1, 1, generator=generator)
    images = torch.where(bright[:, None], ink, paper)
    return (images + 0.05 * torch.randn(count, 3, 12, 12, generator=generator)).clamp(0, 1), labels


def encoder(dim=None):
    torch.manual_seed(0)
    return Encoder(channels=3, widths=(8, 16), dim=dim)


def accuracy(net, seed=1):
    (train, y), (test, truth) = striped(), striped(seed=seed)
    return metrics.knn_accuracy(training.collect(net, train), y, training.collect(net, test), truth)


LOSSES = {
    "random triplets": (losses.random_triplet, 4),
    "all triplets": (losses.batch_all_triplet, 4),
    "semi-hard triplets": (losses.semi_hard_triplet, 4),
    "SupCon": (losses.supcon, 4),
    "N-pair": (losses.n_pair_of_classes, 2),
}


@pytest.mark.parametrize(("loss", "per_class"), LOSSES.values(), ids=LOSSES)
def test_each_loss_orders_the_space(loss, per_class):
    net = encoder(dim=8)
    before = accuracy(net.eval())
    found = metric_learning.learn_metric(net, *striped(), loss, epochs=24, per_class=per_class, lr=1e-2)
    assert len(found) == 24
    assert not net.training
    assert before < 0.65
    assert accuracy(net) > 0.8


def test_same_seed_same_losses():
    def run():
        net = encoder()
        return metric_learning.learn_metric(net, *striped(), losses.supcon, epochs=2, per_class=4)

    assert run() == run()


def test_the_augmentation_is_applied_to_every_batch():
    seen = []

    def watched(batch):
        seen.append(len(batch))
        return batch.flip(3)

    metric_learning.learn_metric(encoder(), *striped(), losses.supcon, epochs=2, per_class=4, augment=watched)
    assert seen == [12] * 50


@pytest.mark.parametrize("contrast", [None, "triplet", "simclr"])
def test_a_classifier_learns_with_any_company(contrast):
    images, labels = striped()
    net = encoder()
    classifier, found = metric_learning.learn_classes(
        net, images, labels, contrast=contrast, augment=lambda batch: batch, epochs=12, batch_size=32, lr=1e-2)
    assert classifier.encoder is net
    assert not classifier.training
    assert found[-1] < found[0]
    test, truth = striped(seed=1)
    assert (training.collect(classifier, test).argmax(1) == truth).double().mean() > 0.9


def test_the_contrast_changes_what_is_learnt_and_its_weight_counts():
    images, labels = striped()

    def run(**options):
        return metric_learning.learn_classes(encoder(), images, labels, augment=lambda batch: batch, epochs=1,
                                             batch_size=48, **options)[1][0]

    assert run(contrast="triplet") > run()
    assert run(contrast="triplet", weight=2.0) > run(contrast="triplet")
    with pytest.raises(ValueError, match="contrast must be one of"):
        run(contrast="infonce")
    with pytest.raises(ValueError, match="weight"):
        run(contrast="triplet", weight=0)


@pytest.mark.parametrize("weight", [0.5, 2.0])
@pytest.mark.parametrize("contrast", [None, "triplet", "simclr"])
def test_the_loss_is_the_sum_it_claims_to_be(contrast, weight, monkeypatch):
    """One batch, no step before it: cross entropy of both views plus the weighted contrast, by hand."""
    images, labels = striped(24)
    seen = []
    real = {name: getattr(losses, name) for name in ("semi_hard_triplet", "info_nce")}
    for name, loss in real.items():
        monkeypatch.setattr(losses, name, lambda *a, loss=loss, **k: seen.append(loss(*a, **k)) or seen[-1])
    entropy = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *a: seen.append(entropy(*a)) or seen[-1])
    drawn = []

    def view(batch):
        drawn.append(batch.flip(3) if len(drawn) % 2 else 1 - batch)
        return drawn[-1]

    passes = []
    net = encoder()
    net.register_forward_hook(lambda module, given, out: passes.append(given[0]))
    _, found = metric_learning.learn_classes(net, images, labels, contrast=contrast, weight=weight, augment=view,
                                             epochs=1, batch_size=24)
    expected = seen[0] + (weight * seen[1] if contrast else 0)
    assert len(seen) == (2 if contrast else 1)
    assert found[0] == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(passes[0], torch.cat(drawn))                            # both views, and nothing else


def test_a_last_batch_of_one_class_does_not_stop_the_training():
    images, labels = striped(9)
    order = torch.tensor([0, 3, 6, 1, 4, 7, 2, 5, 8])
    for seed in range(6):
        torch.manual_seed(seed)
        metric_learning.learn_classes(encoder(), images[order], labels[order], contrast="triplet",
                                      augment=lambda batch: batch, epochs=2, batch_size=7)


def test_an_encoder_must_say_how_many_features_it_gives():
    images, labels = striped(12)
    bare = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 4))
    with pytest.raises(ValueError, match=r"encoder\.dim"):
        metric_learning.learn_classes(bare, images, labels, augment=lambda batch: batch, epochs=1)
    with pytest.raises(ValueError, match="widths"):
        ResNet(widths=())


def test_bad_input_is_refused():
    images, labels = striped()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metric_learning.learn_metric(encoder(), images * 255, labels, losses.supcon, epochs=1)
    with pytest.raises(ValueError, match="labels"):
        metric_learning.learn_metric(encoder(), images, labels[:-1], losses.supcon, epochs=1)
    with pytest.raises(ValueError, match="3 classes"):
        metric_learning.learn_metric(encoder(), images, labels, losses.supcon, epochs=1, classes=5)


def test_networks_keep_their_promises():
    images = torch.rand(2, 3, 32, 32)
    net = ResNet(widths=(4, 8, 16), blocks=1)
    assert net(images).shape == (2, net.dim) == (2, 16)
    trunk = torch.nn.Sequential(*list(net)[:-2])
    assert trunk(images).shape == (2, 16, 8, 8)                             # the stem keeps the resolution
    assert sum(p.numel() for p in resnet18().parameters()) == 11_168_832       # torchvision's, less its head, 3×3 stem
    assert [type(part).__name__ for part in ProjectionHead(8, layers=1)] == ["Linear"]
    assert ProjectionHead(8, out=4, layers=3)(torch.rand(2, 8)).shape == (2, 4)
    with pytest.raises(ValueError, match="layers"):
        ProjectionHead(8, layers=0)
    with pytest.raises(ValueError, match="blocks"):
        ResNet(blocks=0)


def test_a_slice_of_a_network_is_a_plain_sequence_of_its_layers():
    encoder = Encoder(channels=1, widths=(4, 8))
    part = encoder[:2]
    assert type(part) is torch.nn.Sequential
    assert list(part) == list(encoder)[:2]
    assert ProjectionHead(8)[-1].out_features == 128


def test_a_residual_block_equals_torchvisions():
    from torchvision.models.resnet import resnet18 as peer

    torch.manual_seed(0)
    theirs, ours = peer().eval(), resnet18().eval()
    names = [name for name in theirs.state_dict() if not name.startswith("fc.")]
    own = ours.state_dict()
    stem = {name: value for name, value in theirs.state_dict().items() if name in names}
    assert len(own) == len(names)
    shapes = [own[a].shape == stem[b].shape for a, b in zip(own, names, strict=True)]
    assert shapes.count(False) == 1                                            # the stem
    copied = {a: own[a] if own[a].shape != stem[b].shape else stem[b] for a, b in zip(own, names, strict=True)}
    ours.load_state_dict(copied)
    x = torch.rand(2, 64, 16, 16)
    expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    assert torch.allclose(torch.nn.Sequential(*list(ours)[3:-2])(x), expected, atol=1e-4)


def test_parts_are_learnt_in_seconds():
    """A golden run: the chapter's claim at a fraction of its size."""
    parts = data.parts_labelled(n=60, seed=7)
    torch.manual_seed(0)
    net = Encoder(channels=3, widths=(32, 64, 128, 128))
    metric_learning.learn_metric(net, parts.train, parts.train_labels, losses.batch_all_triplet, epochs=12, per_class=6,
                                 lr=3e-3)
    train, test = training.collect(net, parts.train), training.collect(net, parts.test)
    assert metrics.knn_accuracy(train, parts.train_labels, test, parts.test_labels) > 0.55
