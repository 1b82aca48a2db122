"""Models of Equinox, Flax NNX and Keras, against the frameworks and against plain JAX."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss.errors import InputError, UnsupportedError

keras = pytest.importorskip("keras")
nnx = pytest.importorskip("flax.nnx")

EXACT = 1e-12
X = jax.random.normal(jax.random.key(0), (6, 5))
IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
WORDS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 6)))


# Equinox


class Perceptron(eqx.Module):
    first: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, rate=0.1):
        one, two = jax.random.split(jax.random.key(0))
        self.first, self.last = eqx.nn.Linear(5, 7, key=one), eqx.nn.Linear(7, 3, key=two)
        self.dropout = eqx.nn.Dropout(rate)

    def __call__(self, x, key):
        return self.last(self.dropout(jnp.tanh(self.first(x)), key=key))


class Attentive(eqx.Module):
    embedding: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.embedding = eqx.nn.Embedding(11, 8, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(2, 8, dropout_p=0.2, key=keys[1])
        self.norm, self.last = eqx.nn.LayerNorm(8), eqx.nn.Linear(8, 3, key=keys[2])

    def __call__(self, words, key=None):
        h = jax.vmap(self.embedding)(words)
        h = jax.vmap(self.norm)(h + self.attention(h, h, h, key=key))
        return self.last(h.mean(axis=0))


class Normalized(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self):
        one, two = jax.random.split(jax.random.key(0))
        self.first, self.last = eqx.nn.Linear(5, 7, key=one), eqx.nn.Linear(7, 3, key=two)
        self.norm = eqx.nn.BatchNorm(7, axis_name="batch", mode="batch")

    def __call__(self, x, state):
        h, state = self.norm(self.first(x), state)
        return self.last(jnp.tanh(h)), state


class Noisy(eqx.Module):
    linear: eqx.nn.Linear

    def __init__(self):
        self.linear = eqx.nn.Linear(5, 3, key=jax.random.key(0))

    def __call__(self, x, key):
        return self.linear(x + 0.1 * jax.random.normal(key, x.shape))


def test_equinox_perceptron():
    net = Perceptron()
    model = zl.from_equinox(net, X[:2])
    assert {name: each.rate for name, each in model.sites.items()} == {".dropout": 0.1}
    assert set(model.params) == {".first.weight", ".first.bias", ".last.weight", ".last.bias"}
    assert all(each.dtype == jnp.float64 for each in model.params.values())

    def plain(params, x):
        h = jnp.tanh(x @ params[".first.weight"].T + params[".first.bias"])
        return zl.site(h, "dropout") @ params[".last.weight"].T + params[".last.bias"]

    np.testing.assert_allclose(model(model.params, X), plain(model.params, X), rtol=0, atol=EXACT)
    same_drift(model, plain)
    moved = {name: 2 * each for name, each in model.params.items()}
    back = model.module(moved)
    assert back.first.weight.dtype == net.first.weight.dtype
    np.testing.assert_allclose(back.last.bias, 2 * net.last.bias)
    np.testing.assert_allclose(
        jax.vmap(lambda x: eqx.nn.inference_mode(back)(x, None))(X), model(moved, X), atol=1e-5
    )


def same_drift(model, plain, targets=3):
    """The drift of a converted model is that of the same model in plain JAX."""
    y = jax.random.normal(jax.random.key(3), (6, targets))
    noise = model.dropout()
    ours = zl.LeastSquares(model, X, y).with_noise(noise)
    theirs = zl.LeastSquares(plain, X, y).with_noise(zl.Dropout(0.1, at="dropout"))
    at, other = zl.project(ours, model.params), zl.project(theirs, model.params)
    one, two = zl.drift(ours, at), zl.drift(theirs, other)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    for mine, own in pairs:
        np.testing.assert_allclose(mine, own, rtol=0, atol=1e-10)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(one)) > 1e-3


def test_equinox_attention_and_embedding():
    net = Attentive()
    model = zl.from_equinox(net, WORDS)
    assert {name: each.rate for name, each in model.sites.items()} == {".attention.dropout": 0.2}
    own = jax.vmap(eqx.nn.inference_mode(net))(WORDS)
    np.testing.assert_allclose(model(model.params, WORDS), own, atol=1e-5)
    system = zl.LeastSquares(model, WORDS, jnp.zeros((4, 3))).with_noise(model.dropout())
    law = system.noise_law(model.params)
    clean, noisy = (
        system.noisy_loss(model.params, eta)
        for eta in (law.zeros(jnp.float64), law.draw(jax.random.key(0), jnp.float64))
    )
    assert abs(float(noisy - clean)) > 1e-6


def test_equinox_batch_normalization():
    net, state = eqx.nn.make_with_state(Normalized)()
    with pytest.raises(UnsupportedError, match="state="):
        zl.from_equinox(net, X)
    model = zl.from_equinox(net, X, state=state)
    own = jax.vmap(eqx.nn.inference_mode(net), in_axes=(0, None))(X, state)[0]
    np.testing.assert_allclose(model(model.params, X), own, atol=1e-5)


def test_equinox_sequential():
    one, two = jax.random.split(jax.random.key(0))
    net = eqx.nn.Sequential(
        [
            eqx.nn.Linear(5, 7, key=one),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Dropout(0.1),
            eqx.nn.Linear(7, 3, key=two),
        ]
    )
    model = zl.from_equinox(net, X)
    assert list(model.sites) == [".layers[2]"]
    np.testing.assert_allclose(model(model.params, X), jax.vmap(eqx.nn.inference_mode(net))(X), atol=1e-5)


OWN_PROBLEM = """
import equinox as eqx
import jax
import jax.numpy as jnp
import zeroloss as zl


def make():
    one, two, three = jax.random.split(jax.random.key(0), 3)
    net = eqx.nn.Sequential([
        eqx.nn.Linear(5, 30, key=one), eqx.nn.Lambda(jnp.tanh), eqx.nn.Dropout(0.25),
        eqx.nn.Linear(30, 3, key=two),
    ])
    x = jax.random.normal(three, (20, 5))
    model = zl.from_equinox(net, x)
    return zl.CrossEntropy(model, x, jnp.arange(20) % 3, smoothing=0.1), model.params
"""


def test_dropout_of_a_model_in_a_file(tmp_path):
    """Without a rate, dropout has the rates of the model."""
    (tmp_path / "own.py").write_text(OWN_PROBLEM)
    problem = zl.problems.load(str(tmp_path / "own.py"))
    own, other = (zl.problems.parse_noise(problem, text) for text in ("dropout", "dropout:0.1"))
    assert float(own.rate) == 0.25 and float(other.rate) == 0.1
    strong = zl.problems.parse_noise(problem, "dropout", {"dropout": 0.5})
    assert float(strong.rate) == 0.5


def test_equinox_frozen_parameters():
    net = Perceptron()
    trained = jax.tree.map(eqx.is_inexact_array, net)
    trained = eqx.tree_at(lambda net: net.first.bias, trained, replace=False)
    model = zl.from_equinox(net, X, trained=trained)
    assert set(model.params) == {".first.weight", ".last.weight", ".last.bias"}


def test_equinox_refuses():
    with pytest.raises(UnsupportedError, match="random numbers"):
        zl.from_equinox(Noisy(), X)
    with pytest.raises(InputError, match=r"equinox\.Module"):
        zl.from_equinox(jnp.tanh, X)
    with pytest.raises(InputError, match="two or more"):
        zl.from_equinox(Perceptron(), X[:1])
    model = zl.from_equinox(Perceptron(0.0), X)
    with pytest.raises(InputError, match=r"\.dropout"):
        model.dropout()
    assert isinstance(model.dropout({".dropout": 0.3}), zl.Dropout)
    with pytest.raises(InputError, match="params must have the names"):
        model.module({})


# Flax NNX


class Convolutions(nnx.Module):
    def __init__(self, rngs, dtype=None):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs, dtype=dtype)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.channels = nnx.Dropout(0.2, broadcast_dims=(1, 2), rngs=rngs)
        self.units = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.conv(x)))
        x = self.channels(nnx.avg_pool(x, (2, 2), (2, 2)))
        return self.head(self.units(x.reshape(len(x), -1)))


class Transformer(nnx.Module):
    def __init__(self, rngs, broadcast):
        self.embedding = nnx.Embed(11, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, 8, rngs=rngs, decode=False, dropout_rate=0.1, broadcast_dropout=broadcast
        )
        self.norm, self.head = nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, words):
        h = self.embedding(words)
        h = self.norm(h + self.attention(h, mask=nnx.make_causal_mask(words)))
        return self.head(h[:, -1])


class Flat(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jnp.tanh(self.first(x))))


class Rounding(Flat):
    def __call__(self, x):
        return super().__call__(x).astype(jnp.float32)


def test_nnx_perceptron():
    net = Flat(nnx.Rngs(0))
    model = zl.from_nnx(net, X[:2])
    assert set(model.params) == {"first.kernel", "first.bias", "last.kernel", "last.bias"}

    def plain(params, x):
        h = jnp.tanh(x @ params["first.kernel"] + params["first.bias"])
        return zl.site(h, "dropout") @ params["last.kernel"] + params["last.bias"]

    np.testing.assert_allclose(model(model.params, X), plain(model.params, X), rtol=0, atol=EXACT)
    same_drift(model, plain)
    moved = {name: 2 * each for name, each in model.params.items()}
    back = model.module(moved)
    assert back.first.kernel[...].dtype == jnp.float32 and not back.dropout.deterministic
    back.eval()
    np.testing.assert_allclose(back(X), model(moved, X), atol=1e-5)
    assert type(net.dropout) is nnx.Dropout  # the module that was given stays as it is


def test_nnx_convolutions():
    net = Convolutions(nnx.Rngs(0), dtype=jnp.float32)
    model = zl.from_nnx(net, IMAGES)
    sites = {name: (each.rate, each.kind, each.shared) for name, each in model.sites.items()}
    assert sites == {"channels": (0.2, "channels", (1, 2)), "units": (0.5, "units", ())}
    net.eval()
    np.testing.assert_allclose(model(model.params, IMAGES), net(IMAGES), atol=1e-5)
    assert len(zl.LeastSquares(model, IMAGES, jnp.zeros((4, 3))).with_noise(model.dropout()).injections) == 2


@pytest.mark.parametrize("broadcast", [False, True])
def test_nnx_attention(broadcast):
    net = Transformer(nnx.Rngs(0), broadcast)
    model = zl.from_nnx(net, WORDS)
    assert model.sites["attention"].shared == ((0, 1) if broadcast else ())
    net.eval()
    np.testing.assert_allclose(model(model.params, WORDS), net(WORDS), atol=1e-5)
    assert model.dropout().per == ("step" if broadcast else "example")


def test_nnx_refuses():
    with pytest.raises(UnsupportedError, match="rounds to float32"):
        zl.from_nnx(Rounding(nnx.Rngs(0)), X)
    with pytest.raises(InputError, match=r"nnx\.Module"):
        zl.from_nnx(jnp.tanh, X)


# Keras


def keras_images():
    return keras.Sequential([
        keras.layers.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, activation="gelu", name="conv"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.SpatialDropout2D(0.2, name="channels"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.5, name="units"),
        keras.layers.Dense(3, name="head"),
    ], name="net")  # fmt: skip


def test_keras_perceptron():
    net = keras.Sequential([
        keras.layers.Input((5,)), keras.layers.Dense(7, activation="tanh", name="first"),
        keras.layers.Dropout(0.1, name="dropout"), keras.layers.Dense(3, name="last"),
    ], name="net")  # fmt: skip
    model = zl.from_keras(net, X[:2])
    assert set(model.params) == {
        f"net/{layer}/{name}" for layer in ("first", "last") for name in ("kernel", "bias")
    }

    def plain(params, x):
        x = x.astype(jnp.float32).astype(jnp.float64)  # as Keras rounds inputs
        h = jnp.tanh(x @ params["net/first/kernel"] + params["net/first/bias"])
        return zl.site(h, "dropout") @ params["net/last/kernel"] + params["net/last/bias"]

    np.testing.assert_allclose(model(model.params, X), plain(model.params, X), rtol=0, atol=EXACT)
    same_drift(model, plain)
    moved = {name: 2 * each for name, each in model.params.items()}
    net.set_weights(model.weights(moved))
    np.testing.assert_allclose(net(X), model(moved, X), atol=1e-5)
    assert net.layers[0].compute_dtype == "float32"
    dropped = np.asarray(net(X, training=True))
    assert np.abs(dropped - np.asarray(net(X))).max() > 1e-3  # the layers of the model work as before


def test_keras_convolutions():
    net = keras_images()
    model = zl.from_keras(net, IMAGES)
    sites = {name: (each.rate, each.kind, each.shared) for name, each in model.sites.items()}
    assert sites == {"net/channels": (0.2, "channels", (1, 2)), "net/units": (0.5, "units", ())}
    np.testing.assert_allclose(model(model.params, IMAGES), net(IMAGES), atol=1e-5)


def test_keras_attention():
    words = keras.Input((6,), dtype="int32")
    h = keras.layers.Embedding(11, 8)(words)
    h = keras.layers.LayerNormalization()(h + keras.layers.MultiHeadAttention(2, 4, dropout=0.1)(h, h))
    net = keras.Model(words, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(h)))
    model = zl.from_keras(net, WORDS)
    (one,) = model.sites.values()
    assert one.rate == 0.1
    np.testing.assert_allclose(model(model.params, WORDS), net(WORDS), atol=1e-5)


def test_keras_refuses():
    noisy = keras.Sequential(
        [keras.layers.Input((5,)), keras.layers.GaussianNoise(0.1), keras.layers.Dense(3)]
    )
    with pytest.raises(UnsupportedError, match="GaussianNoise"):
        zl.from_keras(noisy, X)
    recurrent = keras.Sequential([keras.layers.Input((6, 2)), keras.layers.LSTM(3, dropout=0.1)])
    with pytest.raises(UnsupportedError, match="recurrent"):
        zl.from_keras(recurrent, jnp.zeros((2, 6, 2)))
    with pytest.raises(InputError, match=r"keras\.Model"):
        zl.from_keras(jnp.tanh, X)
