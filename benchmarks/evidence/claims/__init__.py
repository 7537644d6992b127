"""The study that decides the claims of `CLAIMS.md`, on MNIST-1D."""
