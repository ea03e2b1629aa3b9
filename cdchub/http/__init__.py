"""HTTP: the JSON endpoints, problem documents, and the guard at the door."""

from cdchub.http.body import BodyFirst
from cdchub.http.endpoints import Endpoints
from cdchub.http.guard import Guard, is_loopback, is_origin
from cdchub.http.problem import Faults, from_http_exception, problem, wants_html

__all__ = [
    "BodyFirst",
    "Endpoints",
    "Faults",
    "Guard",
    "from_http_exception",
    "is_loopback",
    "is_origin",
    "problem",
    "wants_html",
]
