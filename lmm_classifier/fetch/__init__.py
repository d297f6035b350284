"""Fetching a URL: the only package that opens a connection to an address somebody gave it.

`client` asks, follows and tries again; `request` makes forms and headers; `connection` is the one file that
opens sockets; `url` reads what it is given in the one way there is; a `Guard` and the table in `addresses`
say where a stranger may send us.
"""

from lmm_classifier.fetch.client import check_url, fetch, post, post_json
from lmm_classifier.fetch.guard import Guard
from lmm_classifier.fetch.limits import DEFAULT_LIMITS, PICTURE_LIMITS, FetchLimits
from lmm_classifier.fetch.request import FormFile, bearer, form_data

__all__ = [
    "DEFAULT_LIMITS",
    "PICTURE_LIMITS",
    "FetchLimits",
    "FormFile",
    "Guard",
    "bearer",
    "check_url",
    "fetch",
    "form_data",
    "post",
    "post_json",
]
