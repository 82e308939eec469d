"""What a model is made of, to see whether something changed it."""


def attributes(model):
    """Every module's own attributes, by identity, its parts and hooks one by one."""
    return {
        name: {
            key: {inner: id(one) for inner, one in value.items()} if isinstance(value, dict) else id(value)
            for key, value in vars(module).items()
        }
        for name, module in model.named_modules()
    }
