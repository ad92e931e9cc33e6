"""The version of this package. The build runs this file to read it, and so refuses a Python that is too old.

The pip of Python 3.10 reads `requires-python` last: it first looks for versions of all that we need, for minutes, and
then names one of them as missing.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("Headway needs Python 3.11 or newer, and this is Python {}.{}".format(*sys.version_info[:2]))

__version__ = "0.2.0"
