"""The user's mistakes, told in one sentence."""

from __future__ import annotations


class UserMistake(ValueError):
    """Something the user can put right; the message names the field and the fix. The command line exits with 2."""
