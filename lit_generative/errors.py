"""Mistakes of users, as distinct from bugs of ours: only these become one line on the command line."""


class UserError(ValueError):
    """Something given to this package cannot be used; the message says what is wrong, where, and what to do."""


class UserTypeError(UserError, TypeError):
    """The same of an object of the wrong kind, such as a model without the method that a callback needs."""


def require_at_least(owner: object, minimum: int, **arguments: float) -> None:
    """Raise a `UserError` that names the first of the ``owner``'s arguments below ``minimum``.

    >>> require_at_least("", 1, n=2, columns=0)
    Traceback (most recent call last):
    lit_generative.errors.UserError: str: columns must be >= 1, got 0
    """
    for name, value in arguments.items():
        if not value >= minimum:
            raise UserError(f"{type(owner).__name__}: {name} must be >= {minimum}, got {value}")
