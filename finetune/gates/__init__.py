"""What rows must pass before they leave: no near-duplicates, nothing that is held out, no secrets; and what is told of it."""
