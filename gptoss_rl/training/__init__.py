"""One actor rank: loading, loss, plan of a step, gradients, checkpoints."""
