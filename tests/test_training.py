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
