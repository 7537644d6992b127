"""Does it help? The study that compares WEISSI with tuned regularizers of Keras.

The environment is set here, before any other module of it imports Keras or JAX.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
# Each process has one thread: networks this small gain nothing from a second.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)
