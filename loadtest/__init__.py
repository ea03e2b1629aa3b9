"""Load tests. They speak the wire only and import nothing of cdchub, so they test what users see."""
