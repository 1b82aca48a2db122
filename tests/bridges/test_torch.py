"""Models of PyTorch in JAX, against PyTorch itself (`zoo.py` has the models)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from zoo import ACTIVATIONS, ZOO, Convolutions, Frozen, Tied  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss.errors import InputError, UnsupportedError  # noqa: E402

EXACT = 1e-12
SITES = {
    "convolutions": {"features.4": (0.2, "channels"), "head.1": (0.5, "units")},
    "attention": {"embedding_dropout": (0.05, "units"), "dropout": (0.2, "units"), "mlp.3": (0.1, "units")},
    "LSTM": {"layer": (0.3, "units")},
    "1d": {"2": (0.1, "channels")},
    "frozen": {"dropout": (0.25, "units")},
    "stochastic depth": {"drops.0": (0.1, "branches"), "drops.1": (0.2, "branches")},
    "rate zero": {"1": (0.0, "units")},
    "GLU": {},
}


def made(name):
    torch.manual_seed(1)
    module, inputs = ZOO[name]()
    return module.eval(), inputs


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


@pytest.mark.parametrize("name", ZOO)
def test_outputs_gradients_and_hessian_vector_products(name):
    module, inputs = made(name)
    model = zl.from_torch(module, inputs)
    module = module.double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
    assert set(model.params) == set(trained)
    weights = torch.cos(torch.arange(module(inputs).numel(), dtype=torch.float64))
    direction = {
        key: torch.sin(torch.arange(value.numel()) + 1.0).double().reshape(value.shape)
        for key, value in trained.items()
    }

    def loss(params):
        return torch.sum(weights * torch.func.functional_call(module, params, (inputs,)).reshape(-1) ** 2)

    def in_jax(params):
        return jnp.sum(array(weights) * model(params, array(inputs)).reshape(-1) ** 2)

    outputs = model(model.params, array(inputs))
    np.testing.assert_allclose(outputs, array(module(inputs)), atol=EXACT * float(jnp.abs(outputs).max()))
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivatives
        value = loss(trained)
        slopes = torch.autograd.grad(value, list(trained.values()), create_graph=True, materialize_grads=True)
        product = sum(torch.sum(slope * direction[key]) for key, slope in zip(trained, slopes, strict=True))
        seconds = slopes
        if name != "Hardsigmoid":  # it has none in PyTorch
            seconds = torch.autograd.grad(product, list(trained.values()), materialize_grads=True)
    gradient = jax.grad(in_jax)
    found, second = jax.jvp(gradient, (model.params,), ({k: array(v) for k, v in direction.items()},))
    within = 1e-7 if name == "Hardsigmoid" else EXACT  # PyTorch has its sixth in float32
    second = found if name == "Hardsigmoid" else second
    for ours, theirs in ((found, slopes), (second, seconds)):
        size = max(float(each.detach().abs().max()) for each in theirs)
        for key, each in zip(trained, theirs, strict=True):
            np.testing.assert_allclose(ours[key], array(each), atol=within * max(size, 1e-8), err_msg=key)


@pytest.mark.parametrize("name", SITES)
def test_sites_and_their_rates(name):
    model = zl.from_torch(*made(name))
    assert {key: (each.rate, each.kind) for key, each in model.sites.items()} == SITES[name]


def test_a_mask_does_in_jax_what_it_does_in_pytorch():
    """The noisy loss with masks of our own, against hooks in PyTorch that apply the same masks."""
    module, inputs = made("convolutions")
    model = zl.from_torch(module, inputs)
    noise = model.dropout()
    labels = jnp.arange(3)
    system = zl.CrossEntropy(
        model, array(inputs).astype(float), labels, smoothing=0.1, classes=10
    ).with_noise(noise)
    eta = system.noise_law(model.params).draw(jax.random.key(0))
    masks = {key: value for part in eta for key, value in part.items()}
    assert masks["features.4"].shape == (3, 8, 1, 1) and masks["head.1"].shape == (3, 16)
    module = module.double()
    for key, mask in masks.items():
        module.get_submodule(key).register_forward_hook(
            lambda _, __, out, mask=mask: out * (1 + torch.tensor(np.asarray(mask)))
        )
    expected = nn.functional.cross_entropy(
        module(inputs.double()), torch.arange(3), label_smoothing=0.1
    ) - float(system.problem.constant)
    np.testing.assert_allclose(system.noisy_loss(model.params, eta), expected.item(), rtol=1e-12)


def test_rates_can_be_changed():
    model = zl.from_torch(*made("attention"))
    noise = model.dropout({"dropout": 0.0, "mlp.3": 0.4})
    rates = {part.at: part.rate for part in zl.noise.parts(noise)}
    assert rates == {("embedding_dropout",): 0.05, ("mlp.3",): 0.4}
    assert [part.at for part in zl.noise.parts(zl.from_torch(*made("stochastic depth")).dropout())] == [
        ("drops.0",),
        ("drops.1",),
    ]
    with pytest.raises(InputError, match=r"no site 'mlp'\. Its sites: embedding_dropout, dropout, mlp.3"):
        model.dropout({"mlp": 0.1})
    with pytest.raises(InputError, match="no dropout of a rate above 0"):
        zl.from_torch(*made("rate zero")).dropout()


def test_the_drift_is_that_of_the_same_model_in_jax():
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 1), nn.Flatten(0))
    inputs = np.random.default_rng(0).normal(size=(8, 4))
    targets = np.sin(inputs[:, 0])
    bridged = zl.from_torch(module, torch.tensor(inputs[:2], dtype=torch.float32))

    def by_hand(params, x):
        hidden = zl.site(jnp.tanh(x @ params["0.weight"].T + params["0.bias"]), "hidden")
        return (hidden @ params["3.weight"].T + params["3.bias"])[:, 0]

    one = zl.LeastSquares(bridged, inputs, targets).with_noise(bridged.dropout() + zl.LabelNoise(0.1))
    other = zl.LeastSquares(by_hand, inputs, targets).with_noise(zl.Dropout(0.1) + zl.LabelNoise(0.1))
    point = zl.project(one, bridged.params)
    for scale in ("first", "second"):
        ours, theirs = (getattr(zl.drift(system, point), scale) for system in (one, other))
        for key, value in theirs.items():
            np.testing.assert_allclose(ours[key], value, atol=1e-10)


@pytest.mark.parametrize("make", [Tied, Frozen, Convolutions], ids=["tied", "frozen", "buffers"])
def test_parameters_go_back(make):
    torch.manual_seed(3)
    module = make().eval()
    inputs = {"Tied": torch.randint(0, 9, (3, 4)), "Frozen": torch.randn(3, 4)}.get(make.__name__)
    inputs = torch.randn(3, 1, 8, 8) if inputs is None else inputs
    model = zl.from_torch(module, inputs)
    moved = {
        name: value + 0.1 * jnp.cos(jnp.arange(value.size)).reshape(value.shape)
        for name, value in model.params.items()
    }
    state = model.state_dict(moved)
    own = module.state_dict()
    assert list(state) == list(own) and all(state[name].dtype == own[name].dtype for name in own)
    before = module(inputs).detach().clone()
    module.load_state_dict(state)
    assert not torch.allclose(before, module(inputs))
    given = array(inputs).astype(float) if inputs.is_floating_point() else array(inputs)
    np.testing.assert_allclose(module(inputs).detach(), model(moved, given), atol=1e-5)
    with pytest.raises(InputError, match="params must have the names"):
        model.state_dict({})


def test_tied_weights_are_one_parameter_and_frozen_ones_none():
    assert list(zl.from_torch(*made("tied")).params) == ["embedding.weight"]
    assert list(zl.from_torch(*made("frozen")).params) == ["last.weight", "last.bias"]


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Squeezed(nn.Module):
    def forward(self, x):
        return (x * 2).squeeze()


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.i0(self.scale * x)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    "module,message",
    [
        (
            nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
            r"1 is batch normalization in training mode.*net\.eval",
        ),
        (nn.Sequential(nn.Linear(3, 3), nn.AlphaDropout(0.1)), r"'1' is alpha_dropout.*does not multiply"),
        (Branching(), r"cannot export this module.*torch\.where"),
        (Squeezed(), r"squeeze\(\) without a dimension"),
        (Unknown(), r"aten\.i0\.default in the module itself has no counterpart"),
    ],
    ids=["batch norm", "alpha dropout", "control flow", "squeeze", "unknown"],
)
def test_what_cannot_be_converted_is_said(module, message):
    with pytest.raises(UnsupportedError, match=f"(?s){message}"):
        zl.from_torch(module, torch.ones(3, 3))


def test_bad_input():
    with pytest.raises(InputError, match=r"takes a torch\.nn\.Module, got function"):
        zl.from_torch(lambda x: x, torch.ones(2, 3))
    with pytest.raises(InputError, match="two or more examples"):
        zl.from_torch(nn.Linear(3, 1), torch.ones(1, 3))
    with pytest.raises(InputError, match="Pair returns 2 outputs"):
        zl.from_torch(Pair(), torch.ones(2, 3))
    with pytest.raises(InputError, match="depend on no parameter"):
        zl.from_torch(nn.Linear(3, 1).requires_grad_(False), torch.ones(2, 3))


def test_an_operation_of_ones_own():
    model = zl.from_torch(
        Unknown(),
        torch.rand(3, 3),
        operations={"aten.i0": jax.scipy.special.i0},
    )
    assert model(model.params, jnp.ones((2, 3))).shape == (2, 3)


def test_a_wrong_operation_is_refused():
    module, inputs = made("ReLU")
    with pytest.raises(InputError, match=r"differ by .*must agree"):
        zl.from_torch(module, inputs, operations={"aten.relu": jnp.abs})


def test_the_zoo_has_every_activation():
    assert len(ZOO) >= 25 and {each.__name__ for each in ACTIVATIONS} <= set(ZOO)


def test_an_optimizer_is_read():
    """The same steps as PyTorch's, from a gradient that is the parameters themselves."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    theirs = torch.optim.SGD([weight], lr=0.1, momentum=0.8, weight_decay=0.05, nesterov=True)
    ours = zl.SGD.from_torch(theirs)
    params = jnp.array([1.0, -2.0])
    velocity = ours.start(params)
    for step in range(5):
        theirs.zero_grad()
        (weight**2 / 2).sum().backward()
        theirs.step()
        params, velocity = ours.update(jnp.asarray(step), params, velocity, params)
    np.testing.assert_allclose(params, weight.detach(), rtol=1e-14)
    assert float(zl.SGD.from_torch(theirs, lambda step: 0.3).at(jnp.asarray(2))) == pytest.approx(0.3)


def test_optimizers_that_are_not_known_yet_are_refused():
    one, other = nn.Linear(2, 1), nn.Linear(2, 1)
    with pytest.raises(UnsupportedError, match=r"takes a torch\.optim\.SGD, got Adam"):
        zl.SGD.from_torch(torch.optim.Adam(one.parameters()))
    groups = [{"params": one.parameters(), "lr": 0.1}, {"params": other.parameters(), "lr": 0.2}]
    with pytest.raises(UnsupportedError, match=r"groups of parameters differ.*0\.1.*0\.2"):
        zl.SGD.from_torch(torch.optim.SGD(groups))
    with pytest.raises(UnsupportedError, match="dampening"):
        zl.SGD.from_torch(torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.5, dampening=0.1))
