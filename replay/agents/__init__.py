"""An agent's own code, recorded as it runs and re-enacted from a recording."""
