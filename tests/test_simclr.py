"""SimCLR: what it learns, what it must not depend on, and the head that is thrown away."""

import copy

import pytest
import torch
from torch import nn

from adlearn import augment, data, losses, metrics, studies, training
from adlearn.methods import simclr
from adlearn.nets import Encoder, ProjectionHead


def encoder(widths=(32, 64, 128, 128)):
    torch.manual_seed(0)
    return Encoder(channels=3, widths=widths)


def small():
    return Encoder(channels=3, widths=(4, 8))


def test_features_gain_over_the_untrained_encoder():
    """A golden run at a fraction of the chapter's size: colours and backgrounds are free, only shape tells."""
    parts = data.parts_labelled(n=60, seed=7)

    def probe(net):
        train, test = (training.collect(net, part, batch_size=256) for part in (parts.train, parts.test))
        return metrics.linear_probe(train, parts.train_labels, test, parts.test_labels)

    net = encoder().eval()
    before = probe(net)
    model, found = simclr.pretrain(net, parts.train, views=studies.COLOUR, epochs=14, batch_size=128, lr=2e-3)
    assert found[-1] < found[0]
    assert model.encoder is net
    assert not model.training
    assert probe(net) > before + 0.1


def test_the_loss_is_info_nce_of_two_views_in_one_pass():
    images = torch.rand(8, 3, 16, 16)
    drawn, passes = [], []

    def views(batch):
        drawn.append(batch.flip(3) if len(drawn) % 2 else 1 - batch)
        return drawn[-1]

    torch.manual_seed(0)
    net, head = small(), ProjectionHead(8, out=5)
    twin = copy.deepcopy(nn.Sequential(net, head)).train()
    net.register_forward_hook(lambda module, given, out: passes.append(given[0]))
    _, found = simclr.pretrain(net, images, head=head, views=views, temperature=0.3, epochs=1, batch_size=8)
    assert len(passes) == 1                                                    # one pass, so one batch for batch norm
    assert torch.equal(passes[0], torch.cat(drawn))
    z = twin(torch.cat(drawn))
    assert found[0] == pytest.approx(losses.info_nce(*z.chunk(2), temperature=0.3).item(), rel=1e-5)


def test_same_seed_same_weights_and_another_seed_others():
    def run(seed):
        torch.manual_seed(seed)
        model, found = simclr.pretrain(small(), torch.rand(12, 3, 16, 16), epochs=2, batch_size=6)
        return found, model.head[0].weight

    (first, one), (second, two), (third, _) = run(0), run(0), run(1)
    assert first == second
    assert torch.equal(one, two)
    assert first != third


def test_h_comes_before_the_head_and_z_after_it():
    torch.manual_seed(0)
    model = simclr.SimCLR(small()).eval()
    images = torch.rand(3, 3, 16, 16)
    assert model.embed(images).shape == (3, 8)
    assert model(images).shape == (3, 128)
    assert torch.equal(model(images), model.head(model.embed(images)))


def test_lars_and_warm_up_reach_the_training(monkeypatch):
    given = {}
    train = training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: given.update(k) or train(*a, **k))
    torch.manual_seed(0)
    simclr.pretrain(small(), torch.rand(20, 3, 16, 16), epochs=3, batch_size=10, lr=0.1, warmup=1,
                    optimizer=training.LARS)
    assert isinstance(given["optimizer"], training.LARS)
    assert given["optimizer"].defaults["lr"] == 0.1
    assert (given["warmup"], given["batch_size"]) == (1, 10)


def test_the_papers_recipe_is_the_default(monkeypatch):
    used = []

    def recipe(**options):
        used.append(options)
        return lambda batch: used.append(len(batch)) or batch

    monkeypatch.setattr(augment, "simclr", recipe)
    simclr.pretrain(small(), torch.rand(6, 3, 16, 16), epochs=1, batch_size=6)
    assert used == [{}, 6, 6]
    with pytest.raises(ValueError, match=r"encoder\.dim"):
        simclr.SimCLR(nn.Flatten())


def test_a_stopped_training_goes_on(tmp_path):
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def run(checkpoint, stop=None):
        torch.manual_seed(0)

        def callback(epoch, module):
            if epoch == stop:
                raise KeyboardInterrupt

        return simclr.pretrain(small(), images, epochs=4, batch_size=6, checkpoint=checkpoint, callback=callback)[1]

    whole = run(tmp_path / "a.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.pt", stop=3)
    assert run(tmp_path / "b.pt") == whole


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        simclr.pretrain(small(), torch.rand(8, 3, 16, 16) * 2, epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="temperature"):
        simclr.pretrain(small(), torch.rand(8, 3, 16, 16), epochs=1, batch_size=4, temperature=0)
