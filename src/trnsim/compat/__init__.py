"""Entry points that public test suites expect beside ``nki``: our own modules, under the names they import.

``modules()`` gives them by name; the pytest plugin puts them in ``sys.modules`` where no real package has the name.
"""

from __future__ import annotations

from trnsim.compat.facade import modules

__all__ = ["modules"]
