# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of keras-weissi
#
# Multiply one layer of a ReLU network by c and divide the next by c: the network
# computes the same, but its L2 penalty changes. This notebook shows what that means
# for training, and what the package does about it. You should know Keras. The notebook
# needs the extra `examples` of the package, and runs in about a minute on a CPU.

# %%
import importlib.util
import os

# Keras uses TensorFlow by default: without it, take JAX or PyTorch.
if not importlib.util.find_spec("tensorflow"):
    has_jax = importlib.util.find_spec("jax") is not None
    os.environ.setdefault("KERAS_BACKEND", "jax" if has_jax else "torch")

# %%
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_weissi
from keras_weissi import NormLogger, ScaleBalancer
from keras_weissi.plotting import plot_norms

# %% [markdown]
# The data are the 1,797 handwritten digits of 8 × 8 pixels that scikit-learn contains.

# %%
pixels, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(
    (pixels / 16).astype("float32"), labels, test_size=0.3, random_state=0
)
print(f"{len(x):,} rows to train on, {len(x_test)} to test")

# %% [markdown]
# ## 1. The same function, another penalty
#
# Take two layers with a ReLU in between. By hand, we multiply the kernel and the bias
# of the first by 10, and divide the kernel of the second by 10.

# %%
keras.utils.set_random_seed(0)
first, second = layers.Dense(32, "relu"), layers.Dense(10)
small = keras.Sequential([keras.Input((64,)), first, second])


def l2_of(model):
    """Returns the sum of squares that an L2 penalty acts on."""
    return sum(float(keras.ops.sum(layer.kernel**2)) for layer in model.layers)


outputs, l2 = small.predict(x_test, verbose=0), l2_of(small)
for weight, factor in [(first.kernel, 10), (first.bias, 10), (second.kernel, 0.1)]:
    weight.assign(weight * factor)
moved = np.abs(small.predict(x_test, verbose=0) - outputs).max()
print(f"largest output {np.abs(outputs).max():.3f}, moved by {moved:.1e}")
print(f"sum of squares {l2:,.0f}, now {l2_of(small):,.0f}")

# %% [markdown]
# The outputs stay the same, up to rounding, but the sum of squares is many times as
# large. So L2 does two things at once: it makes the function simpler, and it moves
# scale between the layers, which does not change the function.
#
# ## 2. Train with L2 and the balancer
#
# `ScaleBalancer` does the second thing itself, before the first step and after every
# epoch: it shifts scale between the layers until the sum of squares is minimal, and
# the model computes the same. `NormLogger` logs the norm of each kernel. Both are
# ordinary callbacks. The penalty is the L2 of Keras.
#
# We train twice: without the balancer and with it.


# %%
def compile_and_fit(model, x, epochs, callbacks=None):
    """Trains a classifier of digits."""
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, 64, epochs, verbose=0, callbacks=callbacks)


def train_chain(callbacks):
    """Trains a ReLU network of five layers with L2, and returns its test accuracy."""
    keras.utils.set_random_seed(0)
    l2 = keras.regularizers.L2(0.001)
    model = keras.Sequential([keras.Input((64,))])
    for i in range(1, 5):
        model.add(layers.Dense(64, "relu", kernel_regularizer=l2, name=f"hidden_{i}"))
    model.add(layers.Dense(10, kernel_regularizer=l2, name="logits"))
    compile_and_fit(model, x, 20, callbacks)
    return model.evaluate(x_test, y_test, verbose=0)[1]


plain, balanced = NormLogger(), NormLogger()
print(f"L2:                 {train_chain([plain]):.1%} of the test rows")
print(f"L2 + ScaleBalancer: {train_chain([ScaleBalancer(), balanced]):.1%}")

# %% [markdown]
# Do not read much into these accuracies: one small data set and one seed say little.
# What we want to see are the norms.

# %%
_, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
plot_norms(plain, ax=axes[0]).set_title("L2")
plot_norms(balanced, ax=axes[1]).set_title("L2 + ScaleBalancer")
plt.show()

# %% [markdown]
# Each line is the norm of one kernel. Without the balancer (left), the norms differ.
# With it (right), they are equal, so the lines cover each other. The dashed line is the
# product of the norms, which no shift of scale changes: it grows while the network
# learns most, and then L2 lowers it.
#
# `NormLogger` also adds the norms to `history.history`, so `CSVLogger` and TensorBoard
# get them, too.
#
# ## 3. Add a penalty to an existing model
#
# This small residual network stands for a model that you have already. It has a
# BatchNormalization and is trained for a few epochs without a penalty.

# %%
keras.utils.set_random_seed(0)
images, test_images = x.reshape(-1, 8, 8, 1), x_test.reshape(-1, 8, 8, 1)
inputs = keras.Input((8, 8, 1), name="image")
h = layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
h = layers.BatchNormalization(name="stem_norm")(h)
shortcut = h = layers.ReLU(name="stem_relu")(h)
h = layers.Conv2D(16, 3, padding="same", activation="relu", name="block_a")(h)
h = layers.Conv2D(16, 3, padding="same", name="block_b")(h)
h = layers.ReLU(name="block_relu")(layers.Add(name="add")([shortcut, h]))
h = layers.Flatten(name="flat")(layers.MaxPooling2D(name="pool")(h))
model = keras.Model(inputs, layers.Dense(10, name="logits")(h))
compile_and_fit(model, images, epochs=5)
print(f"test accuracy: {model.evaluate(test_images, y_test, verbose=0)[1]:.1%}")

# %% [markdown]
# `regularize` adds a penalty to a built model in place. It takes the L2 of Keras, but
# also WEISSI, the penalty of this package: the logarithm of each norm. Shifts of scale
# do not change the sum of the logarithms in a chain of layers. Here, where a gamma (the
# weight that scales the output of the normalization) takes part in the shifts, it
# needs `invariant=True`. The strength is the one [advised](../docs/strength.md) for
# networks with shortcuts.

# %%
strength = keras_weissi.largest_log_norm(10) / 30  # 10 classes
keras_weissi.regularize(model, keras_weissi.WEISSI(strength), invariant=True)

# %% [markdown]
# The report lists every kernel (and the gamma, `stem_norm`), what acts on it now, and
# whether scale can be shifted to or from it. The kernel before the BatchNormalization
# is left out: its scale is normalized away.
#
# **Which penalty?** In our study, L2 with `ScaleBalancer` was the one to try first.
# WEISSI was seldom better than L2 with it, and was far worse in a transformer and with
# many wrong labels. In a chain, WEISSI needs the balancer. See "Does it help?" in the
# [README](../README.md).
#
# The next `fit` uses the penalty, so the model can be trained on.

# %%
model.fit(images, y, 64, epochs=5, verbose=0, callbacks=[ScaleBalancer()])
print(f"test accuracy: {model.evaluate(test_images, y_test, verbose=0)[1]:.1%}")

# %% [markdown]
# ## 4. Look at the scales, shift them, balance them
#
# `scale_groups` lists which tensors must be multiplied by the same factor, and the
# kernels between these groups.

# %%
keras_weissi.scale_groups(model)

# %% [markdown]
# Two groups are free: you may choose their factors. The others are pinned to 1, and
# the table says by what. Shortcut and block end in the same group, as they are added.
#
# So we can multiply `block_a` by 10 and `block_b` by 0.1, and the outputs stay the
# same. If a factor would change what the model computes, `shift_scales` refuses and
# changes nothing.

# %%
outputs = model.predict(test_images, verbose=0)


def print_what_moved(model):
    """Prints how far the outputs are from what they were."""
    moved = np.abs(model.predict(test_images, verbose=0) - outputs).max()
    print(f"largest output {np.abs(outputs).max():.1f}, moved by {moved:.0e}")


keras_weissi.shift_scales(model, {"block_a": 10.0, "block_b": 0.1})
print_what_moved(model)
keras_weissi.norm_table(model, print_fn=None)

# %% [markdown]
# The outputs have not moved, but the norm of `block_a` is a hundred times that of
# `block_b`. The line below the table says what balancing would do. We do it:

# %%
keras_weissi.balance_scales(model)

# %% [markdown]
# Both factors are undone, as the balancer had left the sum of squares at its minimum.
# The state of the optimizer (here the momentum) was rescaled to match.

# %%
print_what_moved(model)
keras_weissi.norm_table(model, print_fn=None)

# %% [markdown]
# The norms are those of before the shift, and the outputs are still the same.
#
# A notebook shows a table if it is the last expression of a cell; `print` writes it as
# text. `norm_table` prints by default: `print_fn=None` turns that off.
#
# ## 5. Save and load
#
# The penalty is saved with the model. To load it in another program, `import
# keras_weissi` first: this registers WEISSI with Keras.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)

print_what_moved(loaded)
was, now = (keras.ops.convert_to_numpy(sum(m.losses)) for m in (model, loaded))
print(f"penalty {was:.4f}, loaded {now:.4f}")

# %% [markdown]
# The loaded model computes the same and has the same penalty.
#
# ## 6. Where to go next
#
# - For your own network: add `ScaleBalancer()` to the callbacks of a training with L2,
#   and tune the strength and the learning rate anew.
# - The [README](../README.md) has the results of the study, with the losses.
# - [How to choose](../docs/choose.md) leads from your model to a recipe. Other pages
#   explain [how strong](../docs/strength.md) a penalty should be, [normalization
#   layers and transformers](../docs/normalization.md) and [custom
#   layers](../docs/custom-layers.md).
# - `generalize.py` in this folder compares three ways to train a deep network,
#   `transformer.py` shifts and balances a small Llama, and `finetune.py` takes a model
#   of `keras.applications`.
