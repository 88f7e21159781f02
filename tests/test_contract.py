"""One contract for all detectors: whatever a method is, this is what its users may rely on."""

import inspect

import pytest
import torch

import adlearn
from adlearn import cache, methods, runtime
from adlearn.backbones import Frozen
from adlearn.detector import Detector, Trained

SIZE = 32
DETECTORS = {   # name: how to build it; every class in adlearn.methods that is a Detector must be here
    "NearestNeighbors": lambda: methods.NearestNeighbors(k=3),
    "KMeans": lambda: methods.KMeans(k=4),
    "OneClassSVM": lambda: methods.OneClassSVM(nu=0.2),
    "KDE": lambda: methods.KDE(),
    "Gaussian": lambda: methods.Gaussian(),
    "FeatureDictionary": lambda: methods.FeatureDictionary(k=20),
    "MeanImage": lambda: methods.MeanImage(),
    "AutoEncoder": lambda: methods.AutoEncoder(latent=8, width=8),
    "VAE": lambda: methods.VAE(latent=8, width=8),
    "AnoGAN": lambda: methods.AnoGAN(latent=8, width=8, steps=20),
    "FastAnoGAN": lambda: methods.FastAnoGAN(latent=8, width=8),
    "DeepSVDD": lambda: methods.DeepSVDD(widths=(8, 8, 8), dim=8),
    "GOAD": lambda: methods.GOAD(shift="cut_permutations"),
    "TwoStage": lambda: methods.TwoStage(),
    "CSI": lambda: methods.CSI(),
    "UninformedStudents": lambda: methods.UninformedStudents(patch_sizes=(17,), students=2, narrow=True, size=SIZE),
    "OnDescriptors": lambda: methods.OnDescriptors(patch_sizes=(17,), narrow=True, size=SIZE, sample=2000),
    "SPADE": lambda: methods.SPADE(size=64, neighbors=3),
    "ViTSPADE": lambda: methods.ViTSPADE(sizes=(64, 96), neighbors=3),
}


def stripes(count: int, seed: int) -> torch.Tensor:
    """Normal images: soft vertical stripes with a little noise, (count, 1, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(count, 1, 1, 1, generator=generator)
    wave = 0.5 + 0.2 * torch.sin(torch.arange(SIZE).view(1, 1, 1, -1) / 2 + phase)
    return (wave + 0.03 * torch.randn(count, 1, SIZE, SIZE, generator=generator)).clamp(0, 1)


def planted(images: torch.Tensor) -> torch.Tensor:
    """The same images, each with a bright square."""
    images = images.clone()
    images[:, :, 8:18, 10:20] = 0.98
    return images


@pytest.fixture(scope="module", autouse=True)
def short_training():
    """Enough to tell the stripes from what is planted among them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, attribute, steps in (("AutoEncoder", "training_steps", 60), ("VAE", "training_steps", 60),
                                       ("AnoGAN", "training_steps", 150), ("FastAnoGAN", "training_steps", 150),
                                       ("FastAnoGAN", "encoder_steps", 60), ("DeepSVDD", "training_steps", 40),
                                       ("DeepSVDD", "pretraining_steps", 40), ("GOAD", "training_steps", 25),
                                       ("TwoStage", "training_steps", 8), ("CSI", "training_steps", 30),
                                       ("UninformedStudents", "training_steps", 16)):
            patch.setattr(getattr(methods, name), attribute, dict.fromkeys(runtime.PROFILES, steps))
        yield


@pytest.fixture(scope="module", params=DETECTORS)
def fitted(request, short_training):
    torch.manual_seed(0)
    return request.param, DETECTORS[request.param]().fit(stripes(24, seed=1))


def test_every_detector_is_tested():
    classes = {n for n in methods.__all__ if isinstance(getattr(methods, n), type)}
    assert {n for n in classes if issubclass(getattr(methods, n), Detector)} == DETECTORS.keys()


def localises(detector: Detector) -> bool:
    return type(detector).anomaly_map is not Detector.anomaly_map


def test_shapes_and_finiteness(fitted):
    _, detector = fitted
    assert not detector.training
    images = stripes(5, seed=2)
    scores = detector.score(images, batch_size=2)
    assert scores.shape == (5,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert detector.embed(images).ndim == 2
    assert len(detector.embed(images)) == 5
    if localises(detector):
        maps = detector.localize(images, batch_size=2)
        assert maps.shape == (5, SIZE, SIZE)
        if type(detector).anomaly_score is Detector.anomaly_score:
            assert torch.allclose(maps.flatten(1).amax(1), scores, rtol=1e-4)
    else:
        with pytest.raises(NotImplementedError, match="does not localise"):
            detector.localize(images)


def test_a_planted_defect_scores_higher(fitted):
    _, detector = fitted
    good = stripes(8, seed=3)
    assert (detector.score(planted(good)) > detector.score(good)).all()
    if localises(detector):
        heat = detector.localize(planted(good))
        assert (heat[:, 8:18, 10:20].mean((1, 2)) > heat.mean((1, 2))).all()


def test_order_and_batches_do_not_matter(fitted):
    _, detector = fitted
    images = torch.cat([stripes(5, seed=4), planted(stripes(2, seed=5))])
    scores = detector.score(images)
    order = torch.tensor([3, 6, 0, 1, 5, 2, 4])
    assert torch.allclose(detector.score(images[order], batch_size=3), scores[order], rtol=1e-3, atol=1e-4)


def test_same_seed_same_scores(fitted):
    name, _ = fitted

    def run():
        torch.manual_seed(7)
        return DETECTORS[name]().fit(stripes(24, seed=1)).score(stripes(3, seed=2))

    assert torch.equal(run(), run())


def test_state_round_trip(fitted, tmp_path):
    _, detector = fitted
    detector.calibrate(stripes(25, seed=6))
    detector.save(tmp_path / "d.pt")
    loaded = adlearn.load(tmp_path / "d.pt")
    images = stripes(4, seed=2)
    assert torch.equal(loaded.score(images), detector.score(images))
    assert torch.equal(loaded.predict(images), detector.predict(images))
    assert loaded.options() == detector.options()
    kept = cache.unseal(tmp_path / "d.pt")
    frozen = {where: part for where, part in detector.named_modules() if isinstance(part, Frozen)}
    assert not any(key.startswith(tuple(f"{where}." for where in frozen)) for key in kept["state"])
    assert kept["backbones"] == {where: {"name": part.name, "sha256": part.sha256} for where, part in frozen.items()}


def test_calibration_holds_the_rate_and_predict_needs_it(fitted):
    name, detector = fitted
    detector.calibrate(stripes(40, seed=8), fpr=0.1)
    assert detector.predict(stripes(40, seed=8)).float().mean() <= 0.1
    assert detector.predict(planted(stripes(10, seed=9))).all()
    with pytest.raises(ValueError, match="at least 99"):
        detector.calibrate(stripes(10, seed=8), fpr=0.01)
    unfit = DETECTORS[name]()
    for call in (unfit.score, unfit.localize, lambda x: unfit.save("never")):
        with pytest.raises(ValueError, match="not fitted"):
            call(stripes(2, seed=1))
    with pytest.raises(ValueError, match="calibrate"):
        unfit.predict(stripes(2, seed=1))


@pytest.mark.parametrize(("bad", "message"), [
    (torch.rand(3, SIZE, SIZE), r"\(B, C, H, W\)"),
    (torch.rand(2, 1, SIZE, SIZE) * 255, r"\[0, 1\]"),
    (torch.full((2, 1, SIZE, SIZE), float("nan")), "finite"),
    (torch.zeros(2, 1, SIZE, SIZE, dtype=torch.uint8), "divide bytes"),
    (torch.rand(0, 1, SIZE, SIZE), "empty"),
    (None, "tensor or an array"),
])
def test_bad_input_is_refused(fitted, bad, message):
    name, detector = fitted
    for call in (detector.score, DETECTORS[name]().fit):
        with pytest.raises(ValueError, match=message):
            call(bad)


def test_datasets_and_folders_score_like_tensors(fitted, tmp_path):
    from PIL import Image

    _, detector = fitted
    images = (stripes(3, seed=2) * 255).round() / 255
    dataset = torch.utils.data.TensorDataset(images)
    assert torch.allclose(detector.score(dataset), detector.score(images), rtol=1e-4)
    for i, image in enumerate(images):
        Image.fromarray((image[0] * 255).byte().numpy()).save(tmp_path / f"{i}.png")
    assert detector.score(tmp_path).shape == (3,)


def test_grey_images_score_as_the_same_in_colour_and_of_another_size(fitted):
    name, detector = fitted
    images = stripes(3, seed=2)
    assert torch.allclose(detector.score(images.expand(-1, 3, -1, -1)), detector.score(images), rtol=1e-2, atol=1e-3)
    if isinstance(detector, Trained) or hasattr(detector, "backbone"):
        larger = torch.nn.functional.interpolate(images, scale_factor=2.0)
        assert detector.score(larger).isfinite().all()
    torch.manual_seed(0)
    coloured = DETECTORS[name]().fit(stripes(24, seed=1).expand(-1, 3, -1, -1))
    assert coloured.score(images).isfinite().all()


def test_a_callback_changes_nothing_and_can_score(fitted):
    name, detector = fitted
    if "callback" not in inspect.signature(detector.fit).parameters:
        pytest.skip("nothing is trained")
    seen = []
    torch.manual_seed(0)

    def look(epoch, it):
        seen.append(epoch)
        assert epoch > 1 or it.score(stripes(2, seed=2)).isfinite().all()

    watched = DETECTORS[name]().fit(stripes(24, seed=1), callback=look)
    assert seen == list(range(len(watched.losses_) + 1))
    torch.manual_seed(0)
    alone = DETECTORS[name]().fit(stripes(24, seed=1))
    assert torch.equal(watched.score(stripes(3, seed=2)), alone.score(stripes(3, seed=2)))


def test_training_in_half_precision_gives_scores_in_single(fitted, monkeypatch):
    name, detector = fitted
    if not isinstance(detector, Trained):
        pytest.skip("nothing is trained")
    monkeypatch.setattr(runtime, "autocast", lambda where: torch.autocast("cpu", dtype=torch.bfloat16))
    scores = DETECTORS[name]().fit(stripes(24, seed=1)).score(stripes(3, seed=2))
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


def test_a_fit_that_breaks_off_in_training_changes_nothing(fitted):
    _, detector = fitted
    if "callback" not in inspect.signature(detector.fit).parameters:
        pytest.skip("nothing is trained")
    images = stripes(5, seed=2)
    detector.calibrate(stripes(25, seed=6))
    before, threshold = detector.score(images), detector.threshold_.clone()

    def stop(epoch, _):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.fit(1 - stripes(24, seed=1), callback=stop)
    assert torch.equal(detector.score(images), before)
    assert torch.equal(detector.threshold_, threshold)
    assert not any(part.training for part in detector.modules())


def test_a_state_can_be_loaded_into_a_detector_that_is_fitted_or_new(fitted):
    name, detector = fitted
    images = stripes(4, seed=2)
    torch.manual_seed(3)
    other = DETECTORS[name]().fit(stripes(24, seed=9))
    for target in (other, DETECTORS[name]().eval()):
        target.load_state_dict(detector.state_dict())
        assert not any(part.training for part in target.modules())
        assert torch.equal(target.score(images), detector.score(images))


def test_a_refit_forgets_the_threshold_and_a_failed_one_changes_nothing(fitted):
    _, detector = fitted
    images = stripes(5, seed=2)
    detector.calibrate(stripes(25, seed=6))
    before = detector.score(images)
    with pytest.raises(ValueError, match="images must lie"):
        detector.fit(stripes(24, seed=1) * 2)
    assert torch.equal(detector.score(images), before)
    detector.predict(images)
    detector.fit(stripes(24, seed=1))
    with pytest.raises(ValueError, match="calibrate"):
        detector.predict(images)


def test_the_global_generator_is_not_reseeded(fitted):
    name, _ = fitted
    torch.manual_seed(11)
    first = DETECTORS[name]().fit(stripes(24, seed=1)) and torch.rand(1)
    torch.manual_seed(12)
    second = DETECTORS[name]().fit(stripes(24, seed=1)) and torch.rand(1)
    assert first != second
