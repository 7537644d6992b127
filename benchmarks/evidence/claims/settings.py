"""What is compared, and where."""

import dataclasses

from evidence.claims.training import EVERY


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to regularize.

    Attributes:
        label: str, for tables and pictures.
        strengths: dict from fields of `Run` to what the strength is multiplied by.
        middle: float, the middle of the first grid of strengths. 0 if there is none.
        flags: dict of other fields of `Run`.
    """

    label: str
    strengths: dict
    middle: float
    flags: dict = dataclasses.field(default_factory=dict)


START = {"start": True}
EPOCH = {"start": True, "every": EVERY}
STEP = {"start": True, "every": 1}
L2, LOG, BOTH = {"l2": 1.0}, {"log": 1.0}, {"log": 1.0, "direction": 0.01}
DECAY = {"decay": 1.0}

METHODS = {
    "none": Method("no penalty", {}, 0.0),
    "none+epoch": Method("no penalty, balanced each epoch", {}, 0.0, EPOCH),
    "none+channel": Method(
        "no penalty, balanced by channel", {}, 0.0, {**EPOCH, "by": "channel"}
    ),
    "neural-balance": Method(
        "synaptic neural balance, as published",
        {},
        0.0,
        {**EPOCH, "by": "channel-weights"},
    ),
    "l2": Method("L2", L2, 1e-3),
    "l2+start": Method("L2, balanced at the start", L2, 1e-3, START),
    "l2+epoch": Method("L2, balanced each epoch", L2, 1e-3, EPOCH),
    "l2+step": Method("L2, balanced each step", L2, 1e-3, STEP),
    "l2+channel": Method(
        "L2, balanced by channel", L2, 1e-3, {**EPOCH, "by": "channel"}
    ),
    "decay": Method("decoupled decay", DECAY, 2e-3),
    "decay+epoch": Method("decoupled decay, balanced each epoch", DECAY, 2e-3, EPOCH),
    "log": Method("WEISSI", LOG, 0.1),
    "log+start": Method("WEISSI, balanced at the start", LOG, 0.1, START),
    "log+epoch": Method("WEISSI, balanced each epoch", LOG, 0.1, EPOCH),
    "log+step": Method("WEISSI, balanced each step", LOG, 0.1, STEP),
    "log+channel": Method(
        "WEISSI, balanced by channel", LOG, 0.1, {**EPOCH, "by": "channel"}
    ),
    "both": Method("WEISSI with direction term", BOTH, 0.1),
    "both+epoch": Method(
        "WEISSI with direction term, balanced each epoch", BOTH, 0.1, EPOCH
    ),
    "rescaling": Method("soft weight rescaling", {"rescaling": 1.0}, 1e-3),
    "coefficients": Method(
        "WEISSI with coefficients", LOG, 0.1, {"on": "coefficients"}
    ),
    "coefficients+epoch": Method(
        "WEISSI with coefficients, balanced each epoch",
        LOG,
        0.1,
        {**EPOCH, "on": "coefficients"},
    ),
    "gammas": Method("WEISSI on the gammas", LOG, 0.1, {"on": "gammas"}),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where methods are compared.

    Attributes:
        label: str, for tables and pictures.
        network: str, a key of `NETWORKS`.
        methods: tuple of keys of `METHODS`.
        optimizer: `"sgd"` or `"adam"`.
        fields: dict of fields of `Run`.
    """

    label: str
    network: str
    methods: tuple
    optimizer: str = "sgd"
    fields: dict = dataclasses.field(default_factory=dict)


CORE = ("none", "l2", "l2+epoch", "log", "log+epoch", "both+epoch")
CHAIN = (*CORE, "none+epoch", "l2+start", "l2+step", "l2+channel", "decay")
CHAIN += ("decay+epoch", "log+start", "log+step", "log+channel", "both")
CHAIN += ("none+channel", "neural-balance", "rescaling")
SHIFTED = ("l2", "l2+start", "l2+epoch", "log", "log+start", "log+epoch")
BIASED = (*CORE, "coefficients", "coefficients+epoch")
ADAM = (*CORE, "decay", "decay+epoch")

SETTINGS = {
    "main": Setting("4 layers, 2,000 rows", "mlp-4", CHAIN),
    "adam": Setting("Adam", "mlp-4", ADAM, "adam"),
    "rows-500": Setting("500 rows", "mlp-4", CORE, fields={"rows": 500}),
    "rows-4000": Setting("4,000 rows", "mlp-4", CORE, fields={"rows": 4000}),
    "noise-20": Setting("20 % wrong labels", "mlp-4", CORE, fields={"noise": 1}),
    "noise-40": Setting("40 % wrong labels", "mlp-4", CORE, fields={"noise": 2}),
    "depth-2": Setting("2 layers", "mlp-2", CORE),
    "depth-8": Setting("8 layers", "mlp-8", CORE),
    "depth-16": Setting("16 layers", "mlp-16", CORE),
    "shift-4": Setting("start shifted by 4", "mlp-4", SHIFTED, fields={"shift": 4.0}),
    "shift-16": Setting(
        "start shifted by 16", "mlp-4", SHIFTED, fields={"shift": 16.0}
    ),
    "warm": Setting(
        "half of the rows first",
        "mlp-4",
        (*CORE, "rescaling"),
        fields={"half": "rows"},
    ),
    "fine-tuning": Setting(
        "fine-tuning, new last layer",
        "mlp-4",
        (*CORE, "l2+start"),
        fields={"half": "task", "rows": 4000},
    ),
    "cnn": Setting("convolutions", "cnn", CORE),
    "cnn-bn": Setting("convolutions, BatchNorm", "cnn-bn", (*CORE, "gammas")),
    "residual": Setting("projection shortcuts", "residual", BIASED),
    "transformer": Setting("transformer, Adam", "transformer", CORE, "adam"),
}
