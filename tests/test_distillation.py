"""Students of a teacher: what is taught reaches them, the teacher stays as it is, noise is in training only."""

import copy
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from adlearn import nets, runtime, training
from adlearn.methods import Classifier, distillation


@dataclass
class Digits:
    """Three of scikit-learn's: what a small network learns in a second."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor


@pytest.fixture(scope="module")
def digits():
    images, labels = (torch.from_numpy(array) for array in load_digits(n_class=3, return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16
    return Digits(images[:360], labels[:360], images[360:])


@pytest.fixture(scope="module")
def teacher(digits):
    runtime.seed(0)
    net = Classifier(nets.Encoder(channels=1, widths=(16, 32)), 3)
    training.train(net, lambda x, y: nn.functional.cross_entropy(net(x), y), digits.train, digits.train_labels,
                   epochs=12, batch_size=24, lr=3e-3)
    net.zero_grad(set_to_none=True)
    return net


def small(seed=1):
    runtime.seed(seed)
    return Classifier(nets.Encoder(channels=1, widths=(8, 16)), 3)


def agreement(one, two, images):
    return (one(images).argmax(1) == two(images).argmax(1)).double().mean().item()


def state(net):
    return [value.clone() for value in net.state_dict().values()]


def test_a_student_learns_the_teachers_answers_without_a_label(digits, teacher):
    student, before = small(), state(teacher.train())
    losses = distillation.distil(student, teacher, digits.train, epochs=12, batch_size=24, lr=3e-3)
    assert agreement(student, teacher, digits.train) > 0.9
    assert losses[-1] < 0.3 * losses[0]
    assert not student.training
    assert not teacher.training
    assert all(map(torch.equal, before, state(teacher)))                # its batch norm has not looked at the batches
    assert all(weight.grad is None for weight in teacher.parameters())


def test_alpha_0_is_learning_from_labels_alone(digits, teacher):
    """A teacher that is always wrong does not matter then, and does when alpha is 1."""
    wrong = copy.deepcopy(teacher)
    wrong.linear.weight.data.neg_()
    found = {}
    for alpha in (0.0, 1.0):
        student = small()
        distillation.distil(student, wrong, digits.train, digits.train_labels, alpha=alpha, epochs=12, batch_size=24,
                            lr=3e-3)
        found[alpha] = (student(digits.train).argmax(1) == digits.train_labels).double().mean().item()
    assert found[0.0] > 0.9
    assert found[1.0] < 0.3


def test_both_see_the_same_augmented_images(digits, teacher):
    seen = []
    hook = teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    student = small()
    student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    distillation.distil(student, teacher, digits.train, augment=lambda images: images.flip(3), epochs=1, batch_size=60)
    hook.remove()
    assert all(torch.equal(one, two) for one, two in zip(seen[::2], seen[1::2], strict=True))
    assert not any(torch.equal(seen[0][0], image) for image in digits.train)


def test_features_are_learnt_up_to_a_linear_map(digits, teacher):
    student = small().encoder
    losses = distillation.distil_features(student, teacher.encoder, digits.train, epochs=15, batch_size=24, lr=3e-3)
    assert losses[0] < 1.6
    assert losses[-1] < 0.6 * losses[0]
    rows = nn.functional.pad(student(digits.train), (0, 1), value=1.0).detach()
    wanted = teacher.encoder(digits.train).detach()
    left = (rows @ torch.linalg.lstsq(rows, wanted).solution - wanted).square().mean() / wanted.var(0).mean()
    assert left < 0.5


def test_a_noisy_student_learns_from_images_without_labels(digits, teacher):
    """Three labelled images, and a teacher that knows: without the others' soft labels these three are not enough."""
    few = [0, 1, 2]
    student = small()
    distillation.noisy_student(student, teacher, digits.train[few], digits.train_labels[few], digits.train,
                               noise=lambda images: images, epochs=12, batch_size=24, lr=3e-3)
    assert agreement(student, teacher, digits.test) > 0.8


def test_unsure_answers_are_left_out(digits, teacher):
    counted = []

    def noise(images):
        counted.append(len(images) // 2)
        return images

    said = teacher(digits.train).softmax(1).amax(1)
    level = said.median().item()
    distillation.noisy_student(small(), teacher, digits.train[:3], digits.train_labels[:3], digits.train, noise=noise,
                               confidence=level, epochs=1, batch_size=24)
    assert sum(counted) == (said >= level).sum()
    with pytest.raises(ValueError, match="confidence must leave"):
        distillation.noisy_student(small(), small(2), digits.train[:3], digits.train_labels[:3], digits.train,
                                   noise=noise, confidence=1.0, epochs=1)


def test_noise_is_in_training_only_and_keeps_the_mean():
    runtime.seed(0)
    net = Classifier(nets.ResNet(widths=(8, 16), blocks=2), 3)
    images = torch.rand(4, 3, 16, 16)
    clean = copy.deepcopy(net).eval()(images)
    rates = [part.p for part in distillation.add_noise(net, depth=0.4).modules()
             if isinstance(part, distillation.StochasticDepth)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(net.eval()(images), clean)
    assert not torch.allclose(net.train()(images), net(images))
    depth = distillation.StochasticDepth(0.25).train()
    found = depth(torch.ones(20_000, 2, 3))
    whole = found.amax((1, 2))
    assert torch.equal(found, whole[:, None, None].expand_as(found))            # an image's branch as a whole
    assert whole.unique().tolist() == pytest.approx([0, 4 / 3])
    assert whole.mean().item() == pytest.approx(1, abs=0.02)


def test_refusals(digits, teacher):
    with pytest.raises(ValueError, match="must not share weights"):
        distillation.distil(teacher, teacher, digits.train, epochs=1)
    with pytest.raises(ValueError, match="labels"):
        distillation.distil(small(), teacher, digits.train, digits.train_labels[:5], epochs=1)
    with pytest.raises(ValueError, match="residual blocks"):
        distillation.add_noise(small())
    with pytest.raises(ValueError, match="p must be"):
        distillation.StochasticDepth(1.0)


def test_the_same_seed_gives_the_same_student(digits, teacher):
    students = [small(), small()]
    for student in students:
        runtime.seed(3)
        distillation.distil(student, teacher, digits.train, epochs=1, batch_size=24)
    assert all(map(torch.equal, state(students[0]), state(students[1])))
