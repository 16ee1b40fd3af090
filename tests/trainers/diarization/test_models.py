"""The heads: published sizes, masks that hold, and a probe that is a well-behaved scikit-learn estimator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from featstore.extractors.device import pick_device
from trainers.diarization.models import Adapter, count_parameters, sinusoids
from trainers.linear_probe import LinearProbe


@pytest.fixture
def blobs():
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((5, 8)) * 3
    labels = np.repeat(np.array(["ann", "bo", "cy", "di", "ed"]), 20)
    vectors = centres.repeat(20, 0) + rng.standard_normal((100, 8))
    return vectors.astype(np.float32), labels


def test_published_parameter_counts():
    assert count_parameters(Adapter(512)) == 7_296_388
    assert count_parameters(Adapter(704)) == 7_296_388 + 192 * 384  # fusion: a wider first layer


def small(dim=6, **changes):
    sizes = {"width": 8, "layers": 2, "heads": 2, "ffn": 16, "dropout": 0.0, "conv_frames": 3, "token_frames": 4}
    return Adapter(dim, **{**sizes, **changes})


def test_adapter_shapes_and_half_precision_features():
    model = Adapter(6, speakers=3, width=8, layers=1, heads=2, ffn=16).eval()
    features = torch.randn(2, 7, 6)
    assert model(features).shape == (2, 7, 3)
    assert torch.allclose(model(features.half()), model(features.half().float()))


@pytest.mark.parametrize("extras", [{"conv_frames": 0, "token_frames": 1}, {}], ids=["published", "small"])
@pytest.mark.parametrize("train", [False, True])
def test_padding_does_not_reach_real_frames(train, extras):
    torch.manual_seed(0)
    model = small(**extras).train(train)
    model.scale.mean.fill_(1.0)  # so that padding is not 0 on the model's scale
    features = torch.randn(1, 9, 6)
    mask = torch.arange(9).expand(1, 9) < 5
    alone = model(features[:, :5])
    changed = features.clone()
    changed[:, 5:] = 1e3
    assert torch.allclose(model(features, mask)[:, :5], alone, atol=1e-5)
    assert torch.allclose(model(changed, mask)[:, :5], alone, atol=1e-5)


def test_tokens_by_hand():
    """Without a Transformer: the convolution is added through a GELU, four frames are averaged, each gets an answer."""
    torch.manual_seed(0)
    model = small().eval()
    model.encoder = torch.nn.Identity()
    model.encoder.forward = lambda x, src_key_padding_mask=None: x
    features = torch.randn(1, 6, 6)
    with torch.no_grad():
        x = model.project(features)[0]
        kernel, bias = model.conv.weight[:, 0], model.conv.bias
        padded = torch.cat([torch.zeros(1, 8), x, torch.zeros(1, 8)])
        convolved = torch.stack([(padded[t : t + 3] * kernel.T).sum(0) + bias for t in range(6)])
        x = x + torch.nn.functional.gelu(convolved)
        means = torch.stack([x[:4].mean(0), x[4:].sum(0) / 4]) + sinusoids(2, 8)
        expected = model.head(means).reshape(8, 4)[:6]
        torch.testing.assert_close(model(features)[0], expected)


def test_dropout_of_channels_is_the_same_in_every_frame():
    torch.manual_seed(0)
    seen = []
    model = small(input_dropout=0.5, dropout=0.5, channel_dropout=True, token_frames=1).train()
    model.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer = model.encoder.layers[1]
    layer.dropout2.register_forward_hook(lambda *call: seen.append(call[2] / call[1][0]))
    model(torch.ones(3, 5, 6))
    for x, scale in zip(seen, (2.0, 2.0), strict=True):
        assert set(x.detach().round(decimals=4).unique().tolist()) == {0.0, scale}
        assert torch.equal(x.round(decimals=4), x[:, :1].round(decimals=4).expand_as(x))
        assert not torch.equal(x[0], x[1])
    assert [block.self_attn.dropout for block in model.encoder.layers] == [0.0, 0.0]
    assert [block.self_attn.dropout for block in Adapter(6, layers=1).encoder.layers] == [0.1]
    model.eval()
    assert torch.equal(model(torch.ones(1, 5, 6)), model(torch.ones(1, 5, 6)))


def test_sinusoids_by_hand():
    table = sinusoids(3, 4)
    assert table[0].tolist() == [0, 1, 0, 1]
    expected = [np.sin(2), np.cos(2), np.sin(2 / 100), np.cos(2 / 100)]  # rates 1 and 10000^(-2/4)
    assert table[2].numpy() == pytest.approx(expected, abs=1e-6)


def test_probe_follows_scikit_learn_conventions():
    results = check_estimator(LinearProbe(lr=0.1, epochs=25), on_skip=None, on_fail=None)
    failed = [r for r in results if r["status"] == "failed"]
    assert not failed, [f"{r['check_name']}: {r['exception']}" for r in failed]


def test_probe_learns_and_projects_without_bias(blobs):
    vectors, labels = blobs
    probe = LinearProbe(lr=0.02, batch_size=16).fit(vectors, labels)
    assert probe.score(vectors, labels) > 0.95
    assert probe.history_[-1]["loss"] < probe.history_[0]["loss"]
    assert len(probe.history_) == 100
    np.testing.assert_allclose(probe.transform(vectors), vectors @ probe.coef_.T, rtol=1e-6)
    assert probe.transform(vectors).shape == (100, 5)


def test_many_speakers_of_one_utterance_each_are_no_regression(blobs):
    """scikit-learn would warn of "a regression problem"; a warning fails a test."""
    vectors, _ = blobs
    assert LinearProbe(epochs=1).fit(vectors, np.arange(len(vectors))).coef_.shape == (100, vectors.shape[1])


def test_probe_agrees_with_logistic_regression(blobs):
    """Without a penalty both minimise the same cross-entropy; compare on noisy data, where the minimum is finite."""
    vectors, labels = blobs
    vectors = vectors + 6 * np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
    probe = LinearProbe(lr=0.02, epochs=1500, batch_size=100).fit(vectors, labels)
    peer = LogisticRegression(C=np.inf, max_iter=2000).fit(vectors, labels)
    centred = probe.decision_function(vectors)
    centred = centred - centred.mean(1, keepdims=True)
    np.testing.assert_allclose(centred, peer.decision_function(vectors), atol=0.1)


def test_a_probe_s_epochs_by_hand(blobs):
    """Weights and order from the seed, batches as long as set, Adam; each epoch's mean loss and share of right answers."""
    vectors, labels = blobs
    told = []
    probe = LinearProbe(lr=0.03, epochs=2, batch_size=32, random_state=7).fit(vectors, labels, on_epoch=told.append)
    classes, targets = np.unique(labels, return_inverse=True)
    rng = torch.Generator().manual_seed(int(np.random.RandomState(7).randint(2**31)))
    x, y = torch.from_numpy(vectors), torch.from_numpy(targets)
    bound = x.shape[1] ** -0.5
    weight = ((torch.rand(len(classes), x.shape[1], generator=rng) * 2 - 1) * bound).requires_grad_()
    bias = ((torch.rand(len(classes), generator=rng) * 2 - 1) * bound).requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=0.03)
    for row in told:
        losses, right = [], 0
        for batch in torch.randperm(len(x), generator=rng).split(32):
            logits = x[batch] @ weight.T + bias
            each = torch.nn.functional.cross_entropy(logits, y[batch], reduction="none")
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
            losses += each.tolist()
            right += int((logits.argmax(1) == y[batch]).sum())
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4) and row["accuracy"] == right / len(x)
    assert (
        [row["epoch"] for row in told] == [1, 2] and told == probe.history_ and all(row["seconds"] >= 0 for row in told)
    )
    np.testing.assert_allclose(probe.coef_, weight.detach(), atol=1e-5)
    np.testing.assert_allclose(probe.intercept_, bias.detach(), atol=1e-5)
    logits = vectors @ probe.coef_.T + probe.intercept_
    np.testing.assert_allclose(probe.decision_function(vectors), logits, atol=1e-5)
    assert (probe.predict(vectors) == classes[logits.argmax(1)]).all()
    two = LinearProbe(epochs=3, lr=0.1).fit(vectors, np.asarray(labels) == labels[0])
    logits = vectors @ two.coef_.T + two.intercept_
    np.testing.assert_allclose(two.decision_function(vectors), logits[:, 1] - logits[:, 0], atol=1e-5)
    assert (two.predict(vectors) == (logits[:, 1] > logits[:, 0])).all() and two.classes_.tolist() == [False, True]


def test_probe_repeats_from_its_seed_and_leaves_the_global_one_alone(blobs):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a = LinearProbe(epochs=3, random_state=1).fit(*blobs)
    assert torch.equal(torch.rand(1), expected)
    b = LinearProbe(epochs=3, random_state=1).fit(*blobs)
    c = LinearProbe(epochs=3, random_state=2).fit(*blobs)
    np.testing.assert_array_equal(a.coef_, b.coef_)
    assert not np.array_equal(a.coef_, c.coef_)


def test_probe_in_a_pipeline_and_cloned(blobs):
    vectors, labels = blobs
    pipeline = make_pipeline(StandardScaler(), LinearProbe(lr=0.05, epochs=30))
    assert clone(pipeline).fit(vectors, labels).score(vectors, labels) > 0.9


def test_probe_refuses_one_class_and_use_before_fit(blobs):
    vectors, labels = blobs
    with pytest.raises(ValueError, match="at least 2 classes, found 1 class"):
        LinearProbe().fit(vectors, ["ann"] * len(labels))
    with pytest.raises(NotFittedError):
        LinearProbe().transform(vectors)


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device must be auto"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="not on this machine"):
            pick_device("cuda")
