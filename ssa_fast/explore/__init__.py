"""The explorer: SSA in the browser, for one user on this machine (``ssa-fast explore``).

``server.create_app(Session(...))`` is the web application; ``session.Session`` is what it can do, without a web.
"""

from __future__ import annotations
