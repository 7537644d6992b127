"""How far an input has to be moved before a network is wrong: attacks by foolbox.

The trained weights are put into the same network in PyTorch, which foolbox supports
best.
"""

import foolbox
import numpy as np
import torch
from torch.nn import functional

from evidence.runs import NOISE, PGD_EPSILONS

# Each network is also attacked with its logits rescaled to this standard deviation,
# which shows what the mere scale of the logits does to an attack.
LOGIT_SCALE = 1.0


class TorchNetwork(torch.nn.Module):
    """A plain network of dense layers and convolutions, with trained weights.

    Args:
        weights: list of arrays: kernel and bias of each layer, as Keras lays them out.
        strides: list of ints, of the convolutions.
        scale: float, the factor of the logits. Defaults to `1.0`.
    """

    def __init__(self, weights, strides=(), scale=1.0):
        super().__init__()
        self.strides = list(strides)
        self.scale = scale
        self.layers = []
        for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
            order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            kernel = np.ascontiguousarray(kernel.transpose(order))
            self.layers.append((torch.tensor(kernel), torch.tensor(np.asarray(bias))))

    def forward(self, x):
        """Returns the logits, of shape `(rows, classes)`."""
        strides = list(self.strides)
        for i, (kernel, bias) in enumerate(self.layers):
            if kernel.ndim == 4:
                stride = strides.pop(0)
                x = functional.conv2d(_padded(x, kernel, stride), kernel, bias, stride)
            else:
                if x.ndim == 4:  # Keras flattens with the channels last
                    x = x.permute(0, 2, 3, 1).flatten(1)
                x = functional.linear(x, kernel, bias)
            if i + 1 < len(self.layers):
                x = functional.relu(x)
        return x * self.scale


def _padded(x, kernel, stride):
    """Pads like `padding="same"` of Keras: the odd row or column goes to the end."""
    padding = []
    for size, width in zip(x.shape[:1:-1], kernel.shape[:1:-1], strict=True):
        total = max((-(-size // stride) - 1) * stride + width - size, 0)
        padding += [total // 2, total - total // 2]
    return functional.pad(x, padding)


def smallest_perturbations(weights, x, y):
    """Finds how far each row has to be moved before a network of dense layers errs.

    Returns:
        Array: for each row, the Euclidean norm of the smaller one of the perturbations
        that DeepFool and FMN find. 0 for a row that is wrong without one.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = TorchNetwork(weights).eval()
    inputs, labels = torch.tensor(x), torch.tensor(y, dtype=torch.long)
    bounds = (-20.0, 20.0)  # which no row comes near
    found = [d for _, d in _distances(network, inputs, labels, bounds, 0.2)]
    return torch.stack(found).amin(0).numpy()


def _distances(network, inputs, labels, bounds, step):
    """Yields the names of two attacks, and how far they have to move each row."""
    model = foolbox.PyTorchModel(network, bounds=bounds, device="cpu")
    for name, attack in (
        ("deepfool", foolbox.attacks.L2DeepFoolAttack(steps=30, candidates=10)),
        ("fmn", foolbox.attacks.L2FMNAttack(steps=100, max_stepsize=step)),
    ):
        found, _, wrong = attack(model, inputs, labels, epsilons=None)
        distance = (found - inputs).flatten(1).norm(dim=1)
        yield name, torch.where(wrong, distance, torch.full_like(distance, np.inf))


def robustness(weights, strides, x, y, seed=0):
    """Attacks a network.

    Args:
        weights: list of arrays.
        strides: list of ints, of the convolutions.
        x: float32 array of shape `(rows, features)` or `(rows, height, width,
            channels)`, in [0, 1].
        y: int array of shape `(rows,)`.
        seed: int, of the noise and the attacks. Defaults to `0`.

    Returns:
        Dict of floats: accuracy under PGD in the maximum norm, for each of
        `PGD_EPSILONS`, with the original and with rescaled logits; the median of the
        smallest perturbations, in the Euclidean norm, that DeepFool and FMN find (0 for
        a row that is wrong without one); accuracy under Gaussian noise of each standard
        deviation in `NOISE`.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    inputs = torch.tensor(x if x.ndim == 2 else x.transpose(0, 3, 1, 2).copy())
    labels = torch.tensor(y)
    network = TorchNetwork(weights, strides).eval()
    with torch.no_grad():
        spread = float(network(inputs).std())
    result = {}
    if not np.isfinite(spread):  # it diverged, so its decisions mean nothing
        names = [f"{name}_{e}" for name in ("pgd", "pgd_scaled") for e in PGD_EPSILONS]
        names += ["deepfool", "fmn", *(f"noise_{d}" for d in NOISE)]
        return dict.fromkeys(names, 0.0)
    scaled = TorchNetwork(weights, strides, LOGIT_SCALE / max(spread, 1e-12)).eval()
    for name, model in (("pgd", network), ("pgd_scaled", scaled)):
        attack = foolbox.attacks.LinfPGD(steps=20)
        model = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        for epsilon in PGD_EPSILONS:
            _, _, wrong = attack(model, inputs, labels, epsilons=epsilon)
            result[f"{name}_{epsilon}"] = 1 - wrong.float().mean().item()
    for name, distance in _distances(network, inputs, labels, (0, 1), 0.05):
        result[name] = distance.median().item()
    noise = torch.randn(inputs.shape)
    with torch.no_grad():
        for deviation in NOISE:
            predicted = network(inputs + deviation * noise).argmax(1)
            result[f"noise_{deviation}"] = (predicted == labels).float().mean().item()
    return result
