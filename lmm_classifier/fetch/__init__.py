"""Fetching a URL: the only package that opens a connection to an address somebody gave it.

`client` asks, follows and tries again; `connection` is the one file that opens sockets; `url` reads what it
is given in the one way there is; a `Guard` and the table in `addresses` say where a stranger may send us.
"""

from lmm_classifier.fetch.client import check_url, fetch, post_json
from lmm_classifier.fetch.guard import Guard
from lmm_classifier.fetch.limits import DEFAULT_LIMITS, PICTURE_LIMITS, FetchLimits

__all__ = ["DEFAULT_LIMITS", "PICTURE_LIMITS", "FetchLimits", "Guard", "check_url", "fetch", "post_json"]
