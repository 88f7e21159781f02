import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adlearn import cache, training
from adlearn.film import Film
from adlearn.nets import ConvAutoEncoder, Encoder


def problem():
    torch.manual_seed(1)
    x = torch.randn(70, 4)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0])
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    return net, x, y, lambda a, b: F.mse_loss(net(a)[:, 0], b)


def test_training_lowers_the_loss_and_ends_in_evaluation_mode():
    net, x, y, loss = problem()
    seen = []
    losses = training.train(net, loss, x, y, epochs=30, batch_size=23, lr=0.02,
                            callback=lambda epoch, module: seen.append((epoch, module.training)))
    assert len(losses) == 30
    assert losses[-1] < 0.2 * losses[0]
    assert not net.training
    assert seen == [(epoch, False) for epoch in range(31)]


def test_same_seed_same_losses():
    def run():
        net, x, y, loss = problem()
        return training.train(net, loss, x, y, epochs=3, batch_size=16)

    assert run() == run()


def test_an_interrupted_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    def run(checkpoint=None, stop_at=None):
        net, x, y, loss = problem()

        def callback(epoch, _):
            if epoch == stop_at:
                raise KeyboardInterrupt

        losses = training.train(net, loss, x, y, epochs=6, batch_size=16, checkpoint=checkpoint, callback=callback)
        return losses, net.state_dict()

    whole, state = run()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c.pt", stop_at=4)
    resumed, resumed_state = run(tmp_path / "c.pt")
    assert resumed == whole
    assert all(torch.equal(state[k], resumed_state[k]) for k in state)


def test_checkpoints_of_other_settings_are_refused_and_damaged_ones_named(tmp_path):
    net, x, y, loss = problem()
    path = tmp_path / "c.pt"
    training.train(net, loss, x, y, epochs=2, batch_size=16, checkpoint=path)
    with pytest.raises(ValueError, match="data or settings"):
        training.train(net, loss, x, y, epochs=2, batch_size=17, checkpoint=path)
    with pytest.raises(ValueError, match="another module, data or settings"):
        training.train(net, loss, x + 1, y, epochs=2, batch_size=16, checkpoint=path)
    other = nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(ValueError, match="another module"):
        training.train(other, lambda a, b: other(a).sum(), x, y, epochs=2, batch_size=16, checkpoint=path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, path.read_bytes()[:-100]):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged"):
            assert len(training.train(net, loss, x, y, epochs=2, batch_size=16, checkpoint=path)) == 2


def test_a_killed_training_goes_on(tmp_path):
    """SIGKILL at any moment leaves a checkpoint that is whole, or none."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training import problem, training
net, x, y, loss = problem()
print("go", flush=True)
training.train(net, loss, x, y, epochs=100_000, batch_size=16, checkpoint={str(tmp_path / 'c.pt')!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    while not (tmp_path / "c.pt").is_file():
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(cache.unseal(tmp_path / "c.pt")["losses"]) >= 1


def test_a_single_left_over_sample_is_trained_on():
    net, x, y, _ = problem()
    seen = []

    def loss(a, b):
        seen.append(len(a))
        return F.mse_loss(net(a)[:, 0], b)

    training.train(net, loss, x[:33], y[:33], epochs=1, batch_size=16)
    assert seen == [16, 17]


def test_training_refuses_what_it_cannot_use():
    net, x, y, loss = problem()
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 2"):
        training.train(net, loss, x, y, epochs=1, batch_size=1)
    with pytest.raises(ValueError, match="epochs"):
        training.train(net, loss, x, y, epochs=0, batch_size=4)
    with pytest.raises(ValueError, match="one length"):
        training.train(net, loss, x, y[:-1], epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="learning rate"):
        training.train(net, lambda a, b: loss(a, b) * float("nan"), x, y, epochs=1, batch_size=4)


def test_collect_keeps_order_and_the_last_batch():
    images = torch.rand(7, 1, 2, 2)
    found = training.collect(lambda b: b.flatten(1).sum(1), images, batch_size=3)
    assert torch.equal(found, images.flatten(1).sum(1))


def test_film_keeps_the_frames_in_one_plane():
    images = torch.rand(20, 1, 16, 16)
    net = Encoder(channels=1, widths=(4, 8), dim=3)
    film = Film(images, lambda module, batch: module(batch), every=2)
    training.train(net, lambda b: net(b).square().mean(), images, epochs=4, batch_size=5, callback=film)
    assert film.epochs == [0, 2, 4]
    assert [f.shape for f in film.frames] == [(20, 3)] * 3
    assert not torch.equal(film.frames[0], film.frames[-1])
    frames = film.project()
    assert [f.shape for f in frames] == [(20, 2)] * 3
    with pytest.raises(ValueError, match="empty"):
        Film(images, lambda module, batch: batch).project()


def test_autoencoder_gives_images_back():
    net = ConvAutoEncoder(channels=3, widths=(4, 8)).eval()
    images = torch.rand(2, 3, 16, 16)
    assert net(images).shape == images.shape
    assert net.code(images).shape == (2, 8, 4, 4)
    with pytest.raises(ValueError, match="divisible by 4"):
        net(torch.rand(1, 3, 18, 16))
    assert 0 <= net(images).min() <= net(images).max() <= 1


def test_shuffled_gives_each_sample_once_and_never_one_alone():
    for count in (2, 3, 31, 32, 33):
        batches = training.Shuffled(count, 16)
        found = list(batches)
        assert len(found) == len(batches)
        assert min(map(len, found)) >= 2
        assert torch.cat(found).sort().values.tolist() == list(range(count))
    assert [len(batch) for batch in training.Shuffled(33, 16)] == [16, 17]


def test_class_batches_hold_blocks_of_each_class():
    labels = torch.tensor([3] * 10 + [5] * 7 + [9] * 4)
    batches = training.ClassBatches(labels, classes=2, per_class=3)
    assert len(batches) == 21 // 6 == len(list(batches))
    for index in batches:
        drawn = labels[index].view(2, 3)
        assert len(set(index.tolist())) == 6                                   # no sample twice
        assert (drawn == drawn[:, :1]).all()
        assert drawn[0, 0] != drawn[1, 0]
    seen = torch.cat([index for _ in range(60) for index in batches])
    assert set(seen.tolist()) == set(range(21))
    assert [len(i) for i in training.ClassBatches(labels, per_class=4)] == [12]


@pytest.mark.parametrize(("options", "word"), [({"classes": 4}, "3 classes"), ({"per_class": 5}, "one with 4"),
                                               ({"classes": 1}, "classes"), ({"per_class": 0}, "per_class")])
def test_class_batches_refuse_what_the_labels_do_not_hold(options, word):
    with pytest.raises(ValueError, match=word):
        training.ClassBatches(torch.tensor([3] * 10 + [5] * 7 + [9] * 4), **options)


def test_training_walks_through_batches_of_ones_own():
    net, x, y, loss = problem()
    rates, seen = [], []

    def watched(a, b):
        seen.append(len(a))
        rates.append(optimizer.param_groups[0]["lr"])
        return 0.001 * loss(a, b)

    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    batches = [torch.arange(5), torch.arange(7), torch.arange(3), torch.arange(2)]
    training.train(net, watched, x, y, epochs=3, batches=batches, warmup=1, optimizer=optimizer)
    assert seen == [5, 7, 3, 2] * 3
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])             # a line, then half a cosine from 1
    assert rates[8] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.1
    with pytest.raises(ValueError, match="either batch_size or batches"):
        training.train(net, loss, x, y, epochs=1, batch_size=4, batches=batches)
    with pytest.raises(ValueError, match="either batch_size or batches"):
        training.train(net, loss, x, y, epochs=1)
    with pytest.raises(ValueError, match="at least one batch"):
        training.train(net, loss, x, y, epochs=1, batches=[])
    with pytest.raises(ValueError, match="warmup must be at most the 2"):
        training.train(net, loss, x, y, epochs=2, batch_size=4, warmup=3)


@pytest.mark.parametrize("option", [{"lr": -1}, {"lr": 1, "momentum": 5}, {"lr": 1, "trust": 0},
                                    {"lr": 1, "weight_decay": -1}])
def test_lars_refuses(option):
    with pytest.raises(ValueError, match=list(option)[-1]):
        training.LARS([torch.nn.Parameter(torch.ones(2, 2))], **option)


def test_lars_moves_a_weight_by_a_share_of_its_length():
    weight, bias = torch.nn.Parameter(torch.tensor([[3.0, 4.0]])), torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    zero = torch.nn.Parameter(torch.zeros(1, 2))
    optimizer = training.LARS([weight, bias, zero], lr=0.5, momentum=0.9, weight_decay=0.0, trust=0.1)
    for scale in (1.0, 100.0):                                                 # the gradient's length does not matter
        before = weight.detach().clone()
        for part in (weight, bias, zero):
            part.grad = torch.full_like(part, scale)
        optimizer.step()
        velocity = optimizer.state[weight]["velocity"]
        assert torch.allclose(before - weight, velocity)
        if scale == 1:
            assert velocity.norm().item() == pytest.approx(0.5 * 0.1 * 5)
            assert torch.allclose(bias, torch.tensor([2.5, 3.5]))              # a plain step
            assert torch.allclose(zero, torch.full((1, 2), -0.5))              # a weight of no length: a plain step
    fresh = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    decayed = training.LARS([fresh], lr=1.0, weight_decay=0.5, trust=0.1)
    fresh.grad = torch.zeros(1, 2)
    decayed.step()
    assert torch.allclose(fresh, torch.tensor([[2.7, 3.6]]))                   # the decay alone sets the direction


def test_passes_come_nearest_to_a_number_of_steps():
    assert training.passes(50, 128, 280) == 280                      # one step an epoch
    assert training.passes(1000, 128, 280) == 35                     # eight
    assert training.passes(100, 2, 10) == 1                          # never none
