"""The batched regression against scikit-learn's, one set of features at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.logistic import fit_each, fit_logistic, log_probs


def random_data(seed: int, n: int = 80, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw three sets of features of very different scales, and classes that hang on them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, n, 5, generator=generator)
    features = features * torch.tensor([1, 10, 0.1, 3, 1]) + 2
    noisy = features[0, :, :classes] / torch.tensor([1, 10, 0.1, 3])[:classes]
    label = (noisy + torch.randn(n, classes, generator=generator)).argmax(-1)
    return features, label


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.003, 0.03, 1.0]), st.sampled_from([2, 3, 4]))
def test_the_batched_path_is_scikit_learns(seed: int, penalty: float, classes: int) -> None:
    features, label = random_data(seed, classes=classes)
    if len(label.unique()) < classes:
        return
    probe = fit_logistic(features, label, classes, penalty, steps=500, tolerance=1e-5)
    found = probe.log_probs(features).exp()
    strength = (2 if classes == 2 else 1) / (len(label) * penalty)
    for one, p in zip(features, found, strict=True):
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=5000, tol=1e-7)
        )
        truth = model.fit(one.double(), label).predict_proba(one.double())
        np.testing.assert_allclose(p, truth, atol=2e-3)


def test_the_settings_of_a_sweep_are_close_to_the_optimum() -> None:
    features, label = random_data(0, n=400)
    quick = fit_logistic(features, label, 4).log_probs(features)
    exact = fit_logistic(features, label, 4, steps=500, tolerance=1e-6).log_probs(features)
    assert (quick.exp() - exact.exp()).abs().max() < 0.02
    assert (quick.argmax(-1) == exact.argmax(-1)).float().mean() > 0.99


def test_sets_do_not_touch_each_other() -> None:
    features, label = random_data(1)
    together = fit_logistic(features, label, 4).log_probs(features).exp()
    for number in range(3):
        one = features[number : number + 1]
        alone = fit_logistic(one, label, 4).log_probs(one).exp()
        torch.testing.assert_close(together[number : number + 1], alone, atol=5e-3, rtol=0)


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_several_classifications_at_once_are_each_alone(seed: int) -> None:
    features, label = random_data(seed, n=60)
    other = torch.randint(4, label.shape, generator=torch.Generator().manual_seed(seed))
    both = fit_each(features, torch.stack((label, other)), 4)
    for found, classes in zip(log_probs(both, features), (label, other), strict=True):
        alone = fit_logistic(features, classes, 4).log_probs(features)
        torch.testing.assert_close(found.exp(), alone.exp(), atol=1e-4, rtol=0)


def test_constant_features_get_no_weight() -> None:
    features, label = random_data(2)
    features[:, :, 2], features[:, :, 3] = 7.0, 0.0
    probe = fit_logistic(features, label, 4)
    assert torch.isfinite(probe.weight).all()
    assert not probe.weight[:, 2:4].any()
    assert probe.log_probs(features).exp().sum(-1).numpy() == pytest.approx(1, abs=1e-5)
