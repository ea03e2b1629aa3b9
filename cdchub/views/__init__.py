"""The live views: pages, their API, and the demo's tables."""

from cdchub.views.pages import client_library, error_page, routes
from cdchub.views.schema import FIRST_TODOS, SCHEMA
from cdchub.views.todos import TodoApi

__all__ = ["FIRST_TODOS", "SCHEMA", "TodoApi", "client_library", "error_page", "routes"]
