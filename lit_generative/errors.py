"""Mistakes of users, as distinct from bugs of ours: only these become one line on the command line."""


class UserError(ValueError):
    """Something given to this package cannot be used; the message says what is wrong, where, and what to do."""


class UserTypeError(UserError, TypeError):
    """The same of an object of the wrong kind, such as a model without the method that a callback needs."""
