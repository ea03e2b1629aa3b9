"""The live views: pages, their API, and the demo's tables and traffic."""

from cdchub.views.dashboard import DashboardApi, local_time_zone
from cdchub.views.pages import client_library, error_page, routes
from cdchub.views.schema import SCHEMA
from cdchub.views.seed import past
from cdchub.views.simulator import simulate
from cdchub.views.todos import TodoApi

__all__ = [
    "SCHEMA",
    "DashboardApi",
    "TodoApi",
    "client_library",
    "error_page",
    "local_time_zone",
    "past",
    "routes",
    "simulate",
]
