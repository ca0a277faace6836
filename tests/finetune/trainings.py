"""What the tests of trainings share: killing one, and comparing what they leave."""

ALL = {"train": 1.0}


class KilledError(Exception):
    """Stands for whatever ends a process."""


def killing_at(number):
    """A callback that ends the training at a step, however it is told of steps."""

    def on_step(step, *_):
        if getattr(step, "step", step) == number:
            raise KilledError

    return on_step


def weights(folder):
    from safetensors.torch import load_file

    return load_file(str(folder / "model.safetensors"))


def same_weights(left, right, atol=1e-6):
    """Whether two model folders hold the same weights."""
    one, other = weights(left), weights(right)
    return set(one) == set(other) and all((one[name] - other[name]).abs().max() < atol for name in one)
