"""The one error class for what the user can correct."""


class UserError(Exception):
    """Bad input: the text gives the value, the allowed range and the next step. Commands print it and exit 2."""


class NotFiniteError(UserError):
    """A graph answers NaN or infinity, from which no text can be read."""
